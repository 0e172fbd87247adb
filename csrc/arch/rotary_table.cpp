#include "rotary_table.h"

#include <cmath>

#include "ggml-backend.h"
#include "hyperparameters.h"
#include "llama-cparams.h"
#include "llama-model.h"

namespace phiggml::arch {

namespace {

// 1 / (factor * base^(2i / n_rot)), each step rounded to float32.
std::vector<float> frequencies(float base, std::int64_t n_rot, const ggml_tensor * factors) {
    std::vector<float> found(static_cast<std::size_t>(n_rot / 2), 1.0f);
    if (factors != nullptr) {
        ggml_backend_tensor_get(factors, found.data(), 0, found.size() * sizeof(float));
    }
    for (std::size_t i = 0; i < found.size(); ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(n_rot);
        const auto power = static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
        found[i] = 1.0f / (found[i] * power);
    }
    return found;
}

}  // namespace

RotaryTable::RotaryTable(const llm_graph_context & graph, const llama_model & model) : n_rot_(graph.n_rot) {
    // A model that was laid out to be measured only has no numbers to read.
    const bool measured = graph.hparams.no_alloc;
    const llama_layer & layer = model.layers[0];
    within_ = {frequencies(graph.freq_base, n_rot_, measured ? nullptr : layer.rope_short), graph.attn_factor};
    beyond_ = {frequencies(graph.freq_base, n_rot_, measured ? nullptr : layer.rope_long),
               graph.attn_factor * attn_factor_ratio(graph.hparams)};
    cosines = ggml_new_tensor_3d(graph.ctx0, GGML_TYPE_F32, graph.n_embd_head_k, 1, graph.n_tokens);
    sines = ggml_dup_tensor(graph.ctx0, cosines);
    ggml_set_input(cosines);
    ggml_set_input(sines);
}

void RotaryTable::set_input(const llama_ubatch * ubatch) {
    const Side & side = rope_side() == RopeSide::within ? within_ : beyond_;
    const auto n_head = static_cast<std::size_t>(cosines->ne[0]);
    const std::size_t half = side.frequencies.size();
    std::vector<float> cos(n_head * ubatch->n_tokens, 1.0f);
    std::vector<float> sin(n_head * ubatch->n_tokens, 0.0f);
    for (std::size_t token = 0; token < ubatch->n_tokens; ++token) {
        const auto position = static_cast<float>(ubatch->pos[token]);
        float * cos_row = cos.data() + token * n_head;
        float * sin_row = sin.data() + token * n_head;
        for (std::size_t i = 0; i < half; ++i) {
            const float angle = position * side.frequencies[i];
            cos_row[i] = cos_row[i + half] = std::cos(angle) * side.scale;
            sin_row[i + half] = std::sin(angle) * side.scale;
            sin_row[i] = -sin_row[i + half];
        }
    }
    ggml_backend_tensor_set(cosines, cos.data(), 0, cos.size() * sizeof(float));
    ggml_backend_tensor_set(sines, sin.data(), 0, sin.size() * sizeof(float));
}

bool RotaryTable::can_reuse(const llm_graph_params & params) {
    return cosines->ne[2] == static_cast<std::int64_t>(params.ubatch.n_tokens);
}

}  // namespace phiggml::arch
