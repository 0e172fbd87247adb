// Attention as phi3 and phimoe have it: rotary positions that follow the sequence, and a sliding window.
#pragma once

#include "long_rope.h"

struct ggml_tensor;
struct llm_graph_context;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;

namespace phiggml::arch {

class RotaryTable;

class Attention {
public:
    Attention(const llm_graph_context & graph, const llama_model & model);

    // What a layer adds to the residual: float[n_embd, n_tokens] from the normed residual of the same shape.
    ggml_tensor * build(ggml_tensor * normed, int layer) const;

private:
    ggml_tensor * rotated(ggml_tensor * heads) const;

    const llm_graph_context & graph_;
    const llama_model & model_;
    const RotaryTable * table_;
    llm_graph_input_attn_kv * whole_ = nullptr;
    llm_graph_input_attn_kv_iswa * windowed_ = nullptr;
};

}  // namespace phiggml::arch
