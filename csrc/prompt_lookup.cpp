#include "prompt_lookup.h"

#include <algorithm>

namespace phiggml {

namespace {

// How far before the last token the next that is the same stands, from `distance` on; n_tokens where there is none.
// Most tokens are others, so that blocks are looked at as a whole, which compilers vectorise.
std::size_t next_same(const std::int32_t * last, std::size_t distance, std::size_t n_tokens) {
    constexpr std::size_t n_block = 32;
    for (; n_tokens - distance >= n_block; distance += n_block) {
        const std::int32_t * block = last - distance - (n_block - 1);
        std::int32_t n_same = 0;
        for (std::size_t i = 0; i < n_block; ++i) {
            n_same += block[i] == *last ? 1 : 0;
        }
        if (n_same > 0) {
            break;
        }
    }
    while (distance < n_tokens && *(last - distance) != *last) {
        ++distance;
    }
    return distance;
}

}  // namespace

// The search of Knuth, Morris and Pratt, from the end: the text read backwards is looked through for its own beginning.
std::vector<std::int32_t> propose(const std::int32_t * tokens, std::size_t n_tokens, std::size_t ngram,
                                  std::size_t n_most) {
    if (ngram == 0 || n_tokens <= ngram) {
        return {};
    }
    const std::int32_t * last = tokens + n_tokens - 1;
    std::vector<std::size_t> shorter(ngram);  // how many are the same where i + 1 were, and the next is another
    std::size_t same = 0;
    for (std::size_t i = 1; i < n_tokens; ++i) {
        if (same == 0) {
            i = next_same(last, i, n_tokens);
            if (i == n_tokens) {
                break;
            }
        }
        while (same > 0 && *(last - i) != *(last - same)) {
            same = shorter[same - 1];
        }
        same += *(last - i) == *(last - same) ? 1 : 0;
        if (same == ngram) {
            const std::int32_t * followed = last - i + ngram;
            return {followed, followed + std::min(n_most, i + 1 - ngram)};
        }
        if (i < ngram) {
            shorter[i] = same;
        }
    }
    return {};
}

std::vector<std::int32_t> PromptLookup::propose(const std::vector<std::int32_t> & tokens, std::size_t n_most) const {
    return phiggml::propose(tokens.data(), tokens.size(), ngram_, std::min(n_, n_most));
}

}  // namespace phiggml
