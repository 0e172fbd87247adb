// Guesses that a text repeats what it has had before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace phiggml {

// What followed the last `ngram` tokens where they came before, the last time that they did; n_most tokens at most,
// and none where they did not. Reads backwards and no further than it must; each token about once.
std::vector<std::int32_t> propose(const std::int32_t * tokens, std::size_t n_tokens, std::size_t ngram,
                                  std::size_t n_most);

class PromptLookup {
public:
    PromptLookup(std::size_t n, std::size_t ngram) : n_(n), ngram_(ngram) {}

    // So many of its own n as there is room for.
    std::vector<std::int32_t> propose(const std::vector<std::int32_t> & tokens, std::size_t n_most) const;

private:
    std::size_t n_;
    std::size_t ngram_;
};

}  // namespace phiggml
