#include "llama_model.h"

#include "ggml-backend.h"
#include "llama-model.h"

namespace phiggml::upstream {

std::vector<std::pair<std::string, std::string>> tensor_devices(const llama_model & model) {
    std::vector<std::pair<std::string, std::string>> devices;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        std::string device;
        if (tensor->buffer != nullptr) {
            const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
            const ggml_backend_dev_t owner = ggml_backend_buft_get_device(type);
            device = owner != nullptr ? ggml_backend_dev_name(owner) : "CPU";
        }
        devices.emplace_back(name, device);
    }
    return devices;
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
