// What a session is made with.
#pragma once

#include <cstdint>
#include <optional>

namespace phiggml {

class Model;

enum class Overflow { refuse, shift };  // of tokens that the context has no room for

struct SessionSettings {
    std::int64_t n_ctx = 0;    // tokens per sequence
    std::int64_t n_batch = 0;  // tokens that one decode call takes
    std::int64_t n_seq_max = 1;
    int type_k = 1;  // ggml types of the KV cache
    int type_v = 1;
    std::optional<bool> flash_attn;  // none: as upstream decides
    bool offload_kv = true;          // the cache of a layer lies where the layer does; else on the CPU
    bool swa_full = true;            // layers of a sliding window keep all tokens, not only those in the window
    Overflow overflow = Overflow::refuse;
    int threads = 1;
};

// Throws what is wrong with them for this model.
void check(const SessionSettings & settings, const Model & model);

}  // namespace phiggml
