// What llama_quant.cpp adds to the llama library: upstream's own rules for which tensor gets which type.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "export.h"

namespace phiggml {

// The hyperparameters that the rules read; those of the first layer where they differ by layer.
struct ModelShape {
    std::string architecture;
    std::uint32_t n_layer = 0;
    std::uint32_t n_head = 0;
    std::uint32_t n_head_kv = 0;
    std::uint32_t n_expert = 0;
    std::uint32_t n_embd = 0;
    std::uint32_t n_ff = 0;
};

namespace upstream {

constexpr int no_type = -1;

struct TypeRules {
    int file_type = 0;  // a llama_ftype
    bool pure = false;
    bool quantize_output = true;
    int output_type = no_type;  // a ggml type, which the embedding follows where there is no output.weight
    bool has_imatrix = false;
    bool in_order = false;  // take the tensors as they come, as upstream does where it keeps a split
};

struct TensorFacts {
    std::string name;
    std::array<std::int64_t, 4> ne;
    int type;
    int override_type = no_type;  // what the user wants it to be
};

struct TensorChoice {
    std::size_t index = 0;  // in the tensors given
    bool allowed = false;   // whether the rules let it change its type
    int type = no_type;
    bool requires_imatrix = false;
    std::string fault;  // why no type could be chosen, or nothing
};

// In the order of upstream's files. A fault of the whole model leaves `tensors` empty.
struct TypeChoices {
    std::string fault;
    std::vector<TensorChoice> tensors;
};

PHIGGML_UPSTREAM_API TypeChoices choose_types(const ModelShape & model, const TypeRules & rules,
                                              const std::vector<TensorFacts> & tensors);

}  // namespace upstream
}  // namespace phiggml
