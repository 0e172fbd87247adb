// The model's own log probabilities, before any setting of sampling.
#pragma once

#include <cstdint>
#include <vector>

namespace phiggml {

struct TokenLogprob {
    std::int32_t token;
    float logprob;
};

struct Logprobs {
    float logprob;                  // of the token that was asked for
    std::vector<TokenLogprob> top;  // the likeliest, likeliest first, of equals the first token
};

// Natural logarithms, from float32[n_vocab]; -inf where the logit is. Fewer than k come where fewer are possible.
Logprobs log_probabilities(const float * logits, std::int32_t n_vocab, std::int32_t token, std::int32_t k);

}  // namespace phiggml
