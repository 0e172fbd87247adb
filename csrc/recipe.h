// Which tensor of a model gets which type: upstream's rules, asked in our words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "upstream/llama_quant.h"

namespace phiggml {

struct ModelType {
    std::string name;  // "Q4_K_M"
    int file_type;     // general.file_type of such a file
};

// Every type that a whole model can be quantized to.
std::vector<ModelType> model_types();

// general.quantization_version of the files that this build writes.
std::uint32_t quantization_version();

// What the user asks for. Types are names; an empty one leaves the choice to the rules.
struct RecipeRules {
    std::string type;
    bool pure = false;
    bool quantize_output = true;
    std::string output_type;
    bool has_imatrix = false;
    bool in_order = false;  // take the tensors as they come; the rules count them
};

struct RecipeTensor {
    std::string name;
    std::vector<std::int64_t> shape;  // numpy order
    std::string type;
    std::string override_type;  // empty: none
};

struct PlannedTensor {
    std::size_t index = 0;  // in the tensors given
    bool allowed = false;   // whether the rules let it change its type
    std::string type;
    bool requires_imatrix = false;
    bool requantized = false;  // from quantized blocks to another type
    std::uint64_t source_row_bytes = 0;
    std::uint64_t row_bytes = 0;
    std::string fault;  // why it cannot be done, or nothing
};

// In the order of upstream's files, or as they come, one for each tensor. Throws Error: input for what no model can
// have, unsupported for an architecture without rules; what is wrong with single tensors is told in their `fault`.
std::vector<PlannedTensor> plan_types(const ModelShape & model, const RecipeRules & rules,
                                      const std::vector<RecipeTensor> & tensors);

}  // namespace phiggml
