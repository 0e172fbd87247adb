// The loop that decodes tokens in batches. Session uses it, and whoever decodes many sequences will.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "arch/long_rope.h"

struct llama_context;

namespace phiggml {

struct BatchRequest {
    const std::int32_t * tokens;
    std::size_t n_tokens;
    std::int32_t sequence = 0;
    std::int32_t first_position = 0;
    std::size_t n_silent = 0;  // so many tokens at the front give no logits; the last one always does
    arch::RopeSide rope_side = arch::RopeSide::within;
};

// Called after each batch with its logits, float32[n_rows, n_vocab], which the next batch overwrites.
using TakeLogits = std::function<void(const float * logits, std::size_t n_rows)>;

// Forgets what the sequence has from this position on; all of it where the model's memory (a recurrent state) cannot go
// back.
void forget_from(llama_context * context, std::int32_t sequence, std::int32_t position);

// Throws Error::session when decoding fails and Cancelled when the context's abort callback asked for it, after
// forget_from(first_position).
void decode_in_batches(llama_context * context, const BatchRequest & request, const TakeLogits & take);

}  // namespace phiggml
