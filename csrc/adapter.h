// What changes a model's computations at run time: LoRA adapters and control vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gguf.h"
#include "model.h"

struct llama_adapter_lora;
struct llama_context;

namespace phiggml {

// Low-rank changes of a model's matrices, on the devices that hold these. It keeps the model alive.
class LoraAdapter {
public:
    // The file has been checked against the model: upstream asserts much of what it computes with later.
    LoraAdapter(std::shared_ptr<const Model> model, const std::shared_ptr<GgufFile> & file, std::size_t n_pairs);

    const Model & model() const { return *model_; }
    std::size_t n_pairs() const { return n_pairs_; }
    llama_adapter_lora * handle() const { return adapter_.get(); }

private:
    struct Free {
        void operator()(llama_adapter_lora * adapter) const;
        const Model * model;
    };

    std::shared_ptr<const Model> model_;
    std::size_t n_pairs_;
    std::unique_ptr<llama_adapter_lora, Free> adapter_;
};

struct ScaledLora {
    std::shared_ptr<const LoraAdapter> adapter;
    float scale;

    bool operator==(const ScaledLora & other) const { return adapter == other.adapter && scale == other.scale; }
};

// What is added to the output of each layer but the first, number 0.
struct ControlVector {
    std::vector<float> rows;  // float32[n_layer - 1, n_embd]
};

// Throws Error::input when one was loaded for another model, is given twice or has a scale that is not finite;
// unsupported when upstream's graph has no room for so many. The next decode plans the context's graph anew, and must
// hold Model::adapters_mutex() meanwhile. Without a context they are checked alone.
void apply_loras(llama_context * context, const Model & model, const std::vector<ScaledLora> & loras);

// Throws Error::input when it is neither empty nor of the model's size and finite.
void check_control_vector(const Model & model, const ControlVector & vector);

// One that has passed the check; an empty one takes back what was applied. Throws Error::device without room for it.
void apply_control_vector(llama_context * context, const Model & model, const ControlVector & vector);

}  // namespace phiggml
