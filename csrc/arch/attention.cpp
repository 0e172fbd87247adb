#include "attention.h"

#include <cmath>
#include <memory>

#include "hyperparameters.h"
#include "llama-graph.h"
#include "llama-model.h"

namespace phiggml::arch {

namespace {

// Holds no tensor. It is there to be asked whether a graph may serve once more.
class RopeSideInput final : public llm_graph_input_i {
public:
    explicit RopeSideInput(RopeSide side) : side_(side) {}

    void set_input(const llama_ubatch *) override {}
    bool can_reuse(const llm_graph_params &) override { return rope_side() == side_; }

private:
    RopeSide side_;
};

}  // namespace

Attention::Attention(const llm_graph_context & graph, const llama_model & model)
    : graph_(graph), model_(model), side_(rope_side()), positions_(graph.build_inp_pos()) {
    if (graph.hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        whole_ = graph.build_attn_inp_kv();
    } else {
        windowed_ = graph.build_attn_inp_kv_iswa();
    }
    if (long_rope_line(model) > 0) {
        graph.res->add_input(std::make_unique<RopeSideInput>(side_));
    }
}

ggml_tensor * Attention::rotated(ggml_tensor * heads, int layer) const {
    const llm_graph_context & g = graph_;
    const bool beyond = side_ == RopeSide::beyond;
    ggml_tensor * factors = beyond ? model_.layers[layer].rope_long : model_.layers[layer].rope_short;
    const float scale = beyond ? g.attn_factor * attn_factor_ratio(g.hparams) : g.attn_factor;
    return ggml_rope_ext(g.ctx0, heads, positions_, factors, static_cast<int>(g.n_rot), g.rope_type, g.n_ctx_orig,
                         g.freq_base, g.freq_scale, g.ext_factor, scale, g.beta_fast, g.beta_slow);
}

ggml_tensor * Attention::build(ggml_tensor * normed, int layer) const {
    const llm_graph_context & g = graph_;
    const llama_layer & weights = model_.layers[layer];
    const std::int64_t head = g.hparams.n_embd_head_k(layer);
    auto [q, k, v] = g.build_qkv(weights, normed, head, g.hparams.n_head(layer), g.hparams.n_head_kv(layer), layer);
    q = rotated(q, layer);
    k = rotated(k, layer);
    g.cb(q, "Qcur", layer);
    g.cb(k, "Kcur", layer);
    g.cb(v, "Vcur", layer);
    const float scale = 1.0f / std::sqrt(static_cast<float>(head));
    if (windowed_ != nullptr) {
        return g.build_attn(windowed_, weights.wo, weights.wo_b, weights.wo_s, q, k, v, nullptr, nullptr, nullptr,
                            scale, layer);
    }
    return g.build_attn(whole_, weights.wo, weights.wo_b, weights.wo_s, q, k, v, nullptr, nullptr, nullptr, scale,
                        layer);
}

}  // namespace phiggml::arch
