#include "attention.h"

#include <cmath>
#include <memory>

#include "llama-graph.h"
#include "llama-model.h"
#include "rotary_table.h"

namespace phiggml::arch {

Attention::Attention(const llm_graph_context & graph, const llama_model & model) : graph_(graph), model_(model) {
    table_ = static_cast<const RotaryTable *>(graph.res->add_input(std::make_unique<RotaryTable>(graph, model)));
    if (graph.hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        whole_ = graph.build_attn_inp_kv();
    } else {
        windowed_ = graph.build_attn_inp_kv_iswa();
    }
}

// heads * cosines + partners * sines, where the partner of a number is the one half a rotation away.
ggml_tensor * Attention::rotated(ggml_tensor * heads) const {
    ggml_context * ctx = graph_.ctx0;
    const std::int64_t n_rot = table_->n_rot(), half = n_rot / 2;
    const auto part = [&](std::int64_t begin, std::int64_t end) {
        return ggml_view_3d(ctx, heads, end - begin, heads->ne[1], heads->ne[2], heads->nb[1], heads->nb[2],
                            static_cast<std::size_t>(begin) * heads->nb[0]);
    };
    ggml_tensor * partners = ggml_concat(ctx, part(half, n_rot), part(0, half), 0);
    if (n_rot < heads->ne[0]) {
        partners = ggml_concat(ctx, partners, part(n_rot, heads->ne[0]), 0);
    }
    return ggml_add(ctx, ggml_mul(ctx, heads, table_->cosines), ggml_mul(ctx, partners, table_->sines));
}

ggml_tensor * Attention::build(ggml_tensor * normed, int layer) const {
    const llm_graph_context & g = graph_;
    const llama_layer & weights = model_.layers[layer];
    const std::int64_t head = g.hparams.n_embd_head_k(layer);
    auto [q, k, v] = g.build_qkv(weights, normed, head, g.hparams.n_head(layer), g.hparams.n_head_kv(layer), layer);
    q = rotated(q);
    k = rotated(k);
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
