#include "hyperparameters.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "gguf.h"
#include "llama-model-loader.h"
#include "llama-model.h"

namespace phiggml::arch {

namespace {

// The window of Phi-3-mini-4k and Phi-3-medium-4k, whose first files do not name it.
constexpr std::uint32_t plain_context = 4096;
constexpr std::uint32_t plain_window = 2047;
// original_max_position_embeddings of every Phi with long rope.
constexpr std::uint32_t original_context = 4096;
// router_jitter_noise of every Phi with experts.
constexpr float usual_jitter = 0.01f;
// short_mscale and long_mscale of Phi-3.5-MoE.
constexpr float phi35_moe_mscale = 1.243163121016122f;

constexpr std::array<const char *, 4> chat_markers = {"<|end|>", "<|assistant|>", "<|user|>", "<|system|>"};

// llama_hparams has no fields of these names; two that other architectures alone read hold them.
float & attn_factor_ratio_of(llama_hparams & hparams) {
    return hparams.f_attention_scale;
}

float & router_jitter_of(llama_hparams & hparams) {
    return hparams.expert_group_scale;
}

std::int64_t find(const llama_model_loader & loader, const char * suffix) {
    return gguf_find_key(loader.metadata, (loader.get_arch_name() + suffix).c_str());
}

bool is_text(const llama_model_loader & loader, const char * key, const char * value) {
    const std::int64_t id = gguf_find_key(loader.metadata, key);
    return id >= 0 && gguf_get_kv_type(loader.metadata, id) == GGUF_TYPE_STRING &&
           std::string(gguf_get_val_str(loader.metadata, id)) == value;
}

bool is_array_of(const gguf_context * metadata, std::int64_t id, gguf_type type) {
    return id >= 0 && gguf_get_kv_type(metadata, id) == GGUF_TYPE_ARRAY && gguf_get_arr_type(metadata, id) == type;
}

bool has_long_rope(const llama_model_loader & loader) {
    return loader.get_weight("rope_factors_long.weight") != nullptr;
}

void load_window(llama_model_loader & loader, llama_hparams & hparams) {
    hparams.n_swa = 0;
    if (!loader.get_key(LLM_KV_ATTENTION_SLIDING_WINDOW, hparams.n_swa, false) &&
        hparams.n_ctx_train == plain_context && loader.get_arch() == LLM_ARCH_PHI3 &&
        is_text(loader, "tokenizer.ggml.model", "llama")) {
        hparams.n_swa = plain_window;
    }
    hparams.swa_type = LLAMA_SWA_TYPE_NONE;
    if (hparams.n_swa == 0 || hparams.n_swa >= hparams.n_ctx_train) {
        hparams.n_swa = 0;
        return;
    }
    hparams.swa_type = LLAMA_SWA_TYPE_STANDARD;
    hparams.set_swa_pattern(0);  // all layers
    hparams.rope_freq_base_train_swa = hparams.rope_freq_base_train;
    hparams.rope_freq_scale_train_swa = hparams.rope_freq_scale_train;
}

// Files of others have the markers of a chat as user-defined tokens, which a prompt could then spell. Where the model
// has no vocabulary, nobody has looked at these arrays before.
void correct_chat_markers(gguf_context * metadata) {
    const char * types_key = "tokenizer.ggml.token_type";
    const std::int64_t tokens = gguf_find_key(metadata, "tokenizer.ggml.tokens");
    const std::int64_t types = gguf_find_key(metadata, types_key);
    if (!is_array_of(metadata, tokens, GGUF_TYPE_STRING) || !is_array_of(metadata, types, GGUF_TYPE_INT32)) {
        return;
    }
    const std::size_t n = std::min(gguf_get_arr_n(metadata, tokens), gguf_get_arr_n(metadata, types));
    const auto * stored = static_cast<const std::int32_t *>(gguf_get_arr_data(metadata, types));
    std::vector<std::int32_t> corrected(stored, stored + gguf_get_arr_n(metadata, types));
    bool changed = false;
    for (std::size_t i = 0; i < n; ++i) {
        if (corrected[i] != LLAMA_TOKEN_TYPE_USER_DEFINED) {
            continue;
        }
        const std::string token = gguf_get_arr_str(metadata, tokens, i);
        if (std::find(chat_markers.begin(), chat_markers.end(), token) != chat_markers.end()) {
            corrected[i] = LLAMA_TOKEN_TYPE_CONTROL;
            changed = true;
        }
    }
    if (changed) {
        gguf_set_arr_data(metadata, types_key, GGUF_TYPE_INT32, corrected.data(), corrected.size());
    }
}

// llama.cpp's converter leaves the mscale of the config out and writes the factor that Phi-3 has.
bool is_phi3_factor(const llama_hparams & hparams) {
    const double scale = static_cast<double>(hparams.n_ctx_train) / hparams.n_ctx_orig_yarn;
    const double factor = scale > 1 ? std::sqrt(1 + std::log(scale) / std::log(hparams.n_ctx_orig_yarn)) : 1;
    constexpr double rounding = 1e-6;
    return std::abs(hparams.rope_attn_factor - factor) < rounding;
}

}  // namespace

void load_phi_hyperparameters(llama_model_loader & loader, llama_hparams & hparams) {
    loader.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);
    if (has_long_rope(loader) && find(loader, ".rope.scaling.original_context_length") < 0) {
        hparams.n_ctx_orig_yarn = original_context;
    }
    attn_factor_ratio_of(hparams) = 1.0f;
    load_window(loader, hparams);
    correct_chat_markers(loader.metadata);
}

void load_phimoe_hyperparameters(llama_model_loader & loader, llama_hparams & hparams) {
    hparams.f_norm_eps = hparams.f_norm_rms_eps;
    const std::int64_t jitter = find(loader, ".router_jitter_noise");
    router_jitter_of(hparams) = jitter < 0 ? usual_jitter : gguf_get_val_f32(loader.metadata, jitter);
    const std::int64_t beyond = find(loader, ".rope.scaling.attn_factor_long");
    if (beyond >= 0) {
        attn_factor_ratio_of(hparams) = gguf_get_val_f32(loader.metadata, beyond) / hparams.rope_attn_factor;
    } else if (has_long_rope(loader) && is_phi3_factor(hparams)) {
        hparams.rope_attn_factor = phi35_moe_mscale;
    }
}

float attn_factor_ratio(const llama_hparams & hparams) {
    return attn_factor_ratio_of(const_cast<llama_hparams &>(hparams));
}

float router_jitter(const llama_hparams & hparams) {
    return router_jitter_of(const_cast<llama_hparams &>(hparams));
}

}  // namespace phiggml::arch
