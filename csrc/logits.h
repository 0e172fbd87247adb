// The logits of one token: their greatest, and those that are near it, without an array of all tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "candidates.h"

namespace phiggml {

// Keeps its memory from one token to the next.
class Logits {
public:
    // Reads float32[n_vocab] once. What follows speaks of these numbers, which must stay until the next look.
    void look(const float * values, std::int32_t n_vocab);

    // Throws unless each has an order among the others and one is finite; nothing below has a meaning otherwise.
    void require_finite() const;

    float greatest() const { return greatest_; }

    // The first token that has the greatest one.
    std::int32_t likeliest() const;

    // The sum of e^((logit - greatest) / temperature).
    double mass(float temperature) const;

    // The standard deviation of those that are finite.
    double deviation() const;

    std::int32_t count(float least) const;  // of those that are at least so great

    // The k greatest finite ones, greatest first; of equals, the first.
    void best(std::int32_t k, Candidates & out);

    // Those that are finite and at least so great, in the order of the tokens.
    void at_least(float least, Candidates & out) const;

private:
    struct Ranked {
        float logit;
        std::int32_t token;
    };

    float bound_of_best(std::int32_t k);
    void collect(float least);

    const float * values_ = nullptr;
    std::size_t n_ = 0;
    bool ordered_ = false;
    float greatest_ = 0;
    std::vector<float> group_greatest_;  // token i is of group i % group_greatest_.size()
    std::vector<float> selected_;
    std::vector<Ranked> ranked_;
};

}  // namespace phiggml
