// Mirostat: keeps the surprise of a text near a target by how many tokens may be drawn.
#pragma once

#include <cstdint>

#include "candidates.h"
#include "logits.h"

namespace phiggml {

// Basu et al., 2021 (arXiv 2007.14966): version 1 is their algorithm 1, which takes the logits for Zipf's; version 2
// their algorithm 2.
class Mirostat {
public:
    Mirostat(std::int32_t version, float target, float rate)
        : version_(version), target_(target), rate_(rate), most_(2 * static_cast<double>(target)) {}

    // The tokens that may be drawn, at least one; likeliest first, but for thousands in version 2.
    void narrow(Logits & logits, float temperature, std::int32_t n_vocab, Candidates & out) const;

    // The surprise of the token that was drawn, among those that might be, in bits.
    void learn(double surprise) { most_ -= rate_ * (surprise - target_); }

private:
    std::int32_t number_by_zipf(Logits & logits, float temperature, std::int32_t n_vocab, Candidates & scratch) const;

    std::int32_t version_;
    double target_;
    double rate_;
    double most_;  // bits; the paper's mu
};

}  // namespace phiggml
