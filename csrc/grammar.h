// One answer's place in a grammar.
#pragma once

#include <cstdint>

struct llama_token_data_array;

namespace phiggml {

class GrammarState {
public:
    bool allows(std::int32_t /*token*/) const { return true; }

    // Sets the logits of tokens that are not allowed to -inf.
    bool mask(llama_token_data_array * /*candidates*/) const { return true; }

    void accept(std::int32_t /*token*/) {}
};

}  // namespace phiggml
