// The cosines and sines by which heads are turned, computed on the host in the reference implementation's arithmetic:
// at position 4096 an angle in float32 is off by 1e-4, so only the same roundings give the same logits.
#pragma once

#include <vector>

#include "llama-graph.h"
#include "long_rope.h"

namespace phiggml::arch {

class RotaryTable final : public llm_graph_input_i {
public:
    RotaryTable(const llm_graph_context & graph, const llama_model & model);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    std::int64_t n_rot() const { return n_rot_; }

    // float[n_embd_head, 1, n_tokens]: what each number of a head is multiplied by, and what its partner is.
    ggml_tensor * cosines;
    ggml_tensor * sines;

private:
    struct Side {
        std::vector<float> frequencies;
        float scale;
    };

    Side within_;
    Side beyond_;
    std::int64_t n_rot_;
};

}  // namespace phiggml::arch
