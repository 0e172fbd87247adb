#include "llama_model.h"

#include "ggml-cpp.h"
#include "llama-ext.h"
#include "llama-model.h"

namespace phiggml::upstream {

namespace {

// The CPU has memory of several kinds; some of it, pinned for a GPU, belongs to that GPU's backend.
std::string device_of(ggml_backend_buffer_type_t type) {
    const ggml_backend_dev_t owner = ggml_backend_buft_get_device(type);
    return owner == nullptr || ggml_backend_buft_is_host(type) ? "CPU" : ggml_backend_dev_name(owner);
}

std::uint64_t size_in(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    if (tensor->view_src != nullptr) {
        return 0;
    }
    const std::uint64_t alignment = ggml_backend_buft_get_alignment(type);
    return (ggml_backend_buft_get_alloc_size(type, tensor) + alignment - 1) / alignment * alignment;
}

// Rows that are written into a cache, as a graph would: the answer is the device's.
bool takes_cache(ggml_backend_dev_t device, ggml_type type, std::int64_t n_row, std::int64_t n_cells) {
    ggml_init_params parameters = {8 * ggml_tensor_overhead(), nullptr, true};
    const ggml_context_ptr context(ggml_init(parameters));
    ggml_tensor * cache = ggml_new_tensor_2d(context.get(), type, n_row, n_cells);
    ggml_tensor * rows = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_row, 1);
    ggml_tensor * numbers = ggml_new_tensor_1d(context.get(), GGML_TYPE_I64, 1);
    const ggml_tensor * written = ggml_set_rows(context.get(), cache, rows, numbers);
    return ggml_backend_dev_supports_op(device, cache) && ggml_backend_dev_supports_op(device, written);
}

}  // namespace

std::vector<TensorPlace> tensor_places(const llama_model & model) {
    std::vector<TensorPlace> places;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (tensor->buffer == nullptr) {
            continue;
        }
        const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
        const bool is_copy = tensor == model.output && tensor != model.tok_embd && name == model.tok_embd->name;
        places.push_back({is_copy ? "output.weight" : name, device_of(type), size_in(type, tensor)});
    }
    return places;
}

std::optional<TensorPlace> unfit_weight(const llama_model & model) {
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (tensor->buffer == nullptr || ggml_backend_buffer_is_host(tensor->buffer)) {
            continue;
        }
        const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
        const ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
        if (device != nullptr && !ggml_backend_dev_supports_op(device, tensor)) {
            return TensorPlace{name, device_of(type), ggml_nbytes(tensor)};
        }
    }
    return std::nullopt;
}

std::optional<TensorPlace> unfit_cache(const llama_model & model, int type_k, int type_v, std::int64_t n_cells) {
    const auto n_layer = static_cast<int>(model.hparams.n_layer());
    for (int layer = 0; layer < n_layer; ++layer) {
        const ggml_backend_dev_t device = model.dev_layer(layer);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            continue;
        }
        const auto is_unfit = [&](ggml_type type, std::int64_t n_row) {
            return n_row > 0 && !takes_cache(device, type, n_row, n_cells);
        };
        const std::int64_t n_k = model.hparams.n_embd_k_gqa(layer), n_v = model.hparams.n_embd_v_gqa(layer);
        const auto k = static_cast<ggml_type>(type_k), v = static_cast<ggml_type>(type_v);
        const bool k_is_unfit = is_unfit(k, n_k);
        if (k_is_unfit || is_unfit(v, n_v)) {
            const std::uint64_t row = k_is_unfit ? ggml_row_size(k, n_k) : ggml_row_size(v, n_v);
            return TensorPlace{k_is_unfit ? "K cache" : "V cache", ggml_backend_dev_name(device),
                               row * static_cast<std::uint64_t>(n_cells)};
        }
    }
    return std::nullopt;
}

std::vector<ContextBytes> context_bytes(const llama_context & context) {
    std::vector<ContextBytes> found;
    for (const auto & [type, bytes] : llama_get_memory_breakdown(&context)) {
        found.push_back({device_of(type), bytes.context, bytes.compute});
    }
    return found;
}

HeadSizes head_sizes(const llama_model & model) {
    return {model.hparams.n_embd_head_k(), model.hparams.n_embd_head_v()};
}

std::size_t most_adapted_tensors(const llama_model & model) {
    switch (model.arch) {
        case LLM_ARCH_HRM_TEXT:
        case LLM_ARCH_NANBEIGE:
            return 0;  // each weight is used again in every round
        // llama_context::graph_max_nodes counts these architectures' adapters for nothing; so many leave three quarters
        // of the nodes for the rest.
        case LLM_ARCH_KIMI_K3:
        case LLM_ARCH_GLM5_NEXT:
        case LLM_ARCH_QWEN3NEXT:
        case LLM_ARCH_KIMI_LINEAR:
        case LLM_ARCH_BAILINGMOE3:
        case LLM_ARCH_QWEN35:
        case LLM_ARCH_QWEN35MOE:
        case LLM_ARCH_CLEF:
        case LLM_ARCH_QWEN4EXP:
        case LLM_ARCH_DEEPSEEK4:
        case LLM_ARCH_DFLASH:
        case LLM_ARCH_MINIMAX_01:
        case LLM_ARCH_MINIMAX_M3:
        case LLM_ARCH_HY_V4: return model.n_tensors() * 8 / 6;
        default: return SIZE_MAX;
    }
}

bool is_causal(const llama_model & model) {
    return model.hparams.causal_attn;
}

bool has_pooling_type(const llama_model & model) {
    return model.hparams.pooling_type != LLAMA_POOLING_TYPE_UNSPECIFIED;
}

std::int64_t most_positions(const llama_model & model) {
    return model.pos_embd != nullptr ? model.pos_embd->ne[1] : INT64_MAX;
}

bool adds_control_vectors(const llama_model & model) {
    return model.arch != LLM_ARCH_PLAMO2 && model.arch != LLM_ARCH_HY_V4;
}

}  // namespace phiggml::upstream
