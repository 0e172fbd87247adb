#include "logprobs.h"

#include <cmath>
#include <string>

#include "error.h"
#include "logits.h"

namespace phiggml {

Logprobs log_probabilities(const float * logits, std::int32_t n_vocab, std::int32_t token, std::int32_t k) {
    if (token < 0 || token >= n_vocab) {
        throw Error(ErrorKind::input, "logprobs: token " + std::to_string(token) + " is not in the vocabulary of " +
                                          std::to_string(n_vocab) + ".");
    }
    if (k < 0 || k > n_vocab) {
        throw Error(ErrorKind::input,
                    "logprobs: it must be between 0 and the " + std::to_string(n_vocab) + " tokens of the vocabulary.");
    }
    Logits row;
    row.look(logits, n_vocab);
    row.require_finite();
    const double log_sum = std::log(row.mass(1));
    const auto logprob = [&](float logit) {
        return static_cast<float>(static_cast<double>(logit) - static_cast<double>(row.greatest()) - log_sum);
    };
    Logprobs found{logprob(logits[token]), {}};
    Candidates top;
    row.best(k, top);
    for (std::size_t i = 0; i < top.size(); ++i) {
        found.top.push_back({top.token(i), logprob(top.logit(i))});
    }
    return found;
}

}  // namespace phiggml
