#include "session_settings.h"

#include <string>

#include "embedder.h"
#include "error.h"
#include "ggml-cpu.h"
#include "llama.h"
#include "model.h"
#include "quant_type.h"
#include "runtime.h"
#include "upstream/llama_model.h"

namespace phiggml {

namespace {

// ggml's own ceiling, GGML_MAX_N_THREADS, beyond which it asserts.
constexpr int most_threads = GGML_MAX_N_THREADS;

void require(bool holds, const std::string & sentence) {
    if (!holds) {
        throw Error(ErrorKind::input, "session: " + sentence);
    }
}

// Those for which ggml can write rows into a cache and attend to them.
bool is_cache_type(int type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_IQ4_NL: return true;
        default: return false;
    }
}

void check_cache_type(int type, const char * name, std::int64_t head_size) {
    require(is_cache_type(type),
            std::string(name) + ": the KV cache takes F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or IQ4_NL.");
    require(head_size % block_size(type) == 0, std::string(name) + ": " + type_name(type) +
                                                   " needs a head size that is a multiple of " +
                                                   std::to_string(block_size(type)) + ". Choose F16.");
}

// Upstream asserts that a device can work on what it is given to hold.
void check_cache_device(const SessionSettings & s, const Model & model) {
    if (!s.offload_kv) {
        return;
    }
    if (const auto unfit = upstream::unfit_cache(*model.handle(), s.type_k, s.type_v, s.n_ctx * s.n_seq_max)) {
        throw Error(ErrorKind::device, "session: " + unfit->device + " cannot take the " + unfit->name +
                                           " of a layer, " + type_name(s.type_k) + "/" + type_name(s.type_v) + ", " +
                                           std::to_string(unfit->n_bytes) +
                                           " bytes in one piece. Choose a smaller n_ctx or other types, or pass "
                                           "offload_kv=False.");
    }
}

// A cache that the machine cannot hold would end the process when it is filled, not when it is asked for.
void check_cache_size(const SessionSettings & s, const Model & model) {
    constexpr std::int64_t granularity = 256;  // upstream rounds each sequence's part up to it
    const std::int64_t n_cells = (s.n_ctx + granularity - 1) / granularity * granularity * s.n_seq_max;
    const upstream::HeadSizes head = upstream::head_sizes(*model.handle());
    const double heads = static_cast<double>(n_cells) * model.n_layer() * llama_model_n_head_kv(model.handle());
    const auto bytes_each = [](int type) {
        return static_cast<double>(block_bytes(type)) / static_cast<double>(block_size(type));
    };
    const double bytes = heads * (static_cast<double>(head.key) * bytes_each(s.type_k) +
                                  static_cast<double>(head.value) * bytes_each(s.type_v));
    double memory = 0;
    for (const DeviceInfo & device : list_devices()) {
        memory += static_cast<double>(device.memory_total);
    }
    constexpr double gigabyte = 1e9;
    if (bytes > memory) {
        throw Error(ErrorKind::session,
                    "session: the KV cache of " + std::to_string(s.n_ctx * s.n_seq_max) + " tokens takes " +
                        std::to_string(static_cast<long>(bytes / gigabyte)) + " GB; the machine has " +
                        std::to_string(static_cast<long>(memory / gigabyte)) + " GB. Choose a smaller n_ctx.");
    }
}

}  // namespace

void check(const SessionSettings & s, const Model & model) {
    constexpr std::int64_t most_tokens = 1 << 30;
    require(s.n_ctx >= 1 && s.n_ctx <= most_tokens,
            "n_ctx is " + std::to_string(s.n_ctx) + "; it must be between 1 and 2^30.");
    const std::int64_t most_positions = upstream::most_positions(*model.handle());
    require(s.n_ctx <= most_positions, "n_ctx is " + std::to_string(s.n_ctx) + "; this model has a table of " +
                                           std::to_string(most_positions) + " positions.");
    require(s.n_batch >= 1 && s.n_batch <= most_tokens,
            "n_batch is " + std::to_string(s.n_batch) + "; it must be between 1 and 2^30.");
    const auto most_sequences = static_cast<std::int64_t>(llama_max_parallel_sequences());
    require(s.n_seq_max >= 1 && s.n_seq_max <= most_sequences && s.n_ctx * s.n_seq_max <= most_tokens,
            "n_seq_max is " + std::to_string(s.n_seq_max) + "; it must be between 1 and " +
                std::to_string(most_sequences) + ", and n_ctx * n_seq_max at most 2^30.");
    require(
        s.threads >= 1 && s.threads <= most_threads,
        "threads is " + std::to_string(s.threads) + "; it must be between 1 and " + std::to_string(most_threads) + ".");
    const upstream::HeadSizes head = upstream::head_sizes(*model.handle());
    check_cache_type(s.type_k, "type_k", head.key);
    check_cache_type(s.type_v, "type_v", head.value);
    require(block_size(s.type_v) == 1 || s.flash_attn != false,
            "type_v: a quantized V cache needs flash attention. Leave flash_attn at \"auto\" or True, or choose F16.");
    if (!model.has_decoder() && !Embedder::takes(model)) {
        throw Error(ErrorKind::unsupported,
                    "session: this model reads one text to write another; phiggml runs decoder models, and those "
                    "that embed texts.");
    }
    check_cache_device(s, model);
    if (!model.no_alloc()) {
        check_cache_size(s, model);
    }
}

}  // namespace phiggml
