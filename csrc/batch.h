// The loop that decodes tokens of one or many sequences in batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "arch/long_rope.h"

struct llama_context;

namespace phiggml {

// What a sequence is to read next.
struct BatchPart {
    const std::int32_t * tokens;
    std::size_t n_tokens;
    std::int32_t sequence = 0;
    std::int32_t first_position = 0;
};

// Whether a token of a part is to give logits, and who takes them: float32[n_vocab], which the next batch overwrites.
using WantsLogits = std::function<bool(std::size_t part, std::size_t token)>;
using TakeLogits = std::function<void(std::size_t part, std::size_t token, const float * logits)>;

// Forgets what the sequence has from this position on; all of it where the model's memory (a recurrent state) cannot go
// back.
void forget_from(llama_context * context, std::int32_t sequence, std::int32_t position);

// Throws Error::session when decoding fails, and Cancelled when the context's abort callback asked for it or `stopped`
// does, which a device that calls no callback is asked by between batches; after forget_from(first_position) of all
// parts.
void decode_in_batches(llama_context * context, const std::vector<BatchPart> & parts, arch::RopeSide rope_side,
                       const WantsLogits & wants, const TakeLogits & take, const std::function<bool()> & stopped);

}  // namespace phiggml
