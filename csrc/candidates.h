// The tokens among which one is drawn, and what narrows them down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace phiggml {

// The least logit of a token that is at least this likely, relative to one that has the greatest.
float relative_bound(float greatest, double probability);

// What is kept stays in its order: that of the tokens, or the greatest logits first. Keeps its memory from one token
// to the next.
class Candidates {
public:
    // What resize() adds is to be written through the pointers.
    void resize(std::size_t n);
    std::int32_t * tokens() { return tokens_.data(); }
    float * logits() { return logits_.data(); }
    std::size_t size() const { return tokens_.size(); }
    std::int32_t token(std::size_t i) const { return tokens_[i]; }
    float logit(std::size_t i) const { return logits_[i]; }

    void keep_at_least(float logit);

    // The likeliest that together have this mass; all where they have less.
    void keep_top(double mass);

    // Those whose surprise is nearest to the mean of all, and that together have more than this probability.
    void keep_typical(double probability);

    // Those that are at least this likely, relative to the likeliest.
    void keep_relative(double probability);

    // Of those that have this probability, only the least likely.
    void drop_top_choices(double probability);

    // How surprised one would be on average, between 0 and 1, where all are equally likely.
    double relative_entropy();

    // From now on tokens weigh e^(logit / temperature); at 0 only the first of the greatest does.
    void heat(float temperature);

    // The first that has, with those before it, this share of all weight.
    std::size_t draw(double share);

    // In bits.
    double surprise(std::size_t i);

    // The sum of e^((logit - greatest) / temperature), where that was the greatest when it was first asked for.
    double mass();

private:
    template <typename Kept>
    void keep_if(Kept && kept);
    void keep_first(double mass);
    float greatest() const;
    void weigh();
    double mean_surprise();

    std::vector<std::int32_t> tokens_;
    std::vector<float> logits_;
    std::vector<float> weights_;  // relative to the greatest logit; as many as there are candidates, or none
    float weighed_from_ = 0;      // that logit
    float temperature_ = 1;
    std::vector<float> keys_;
    std::vector<std::uint32_t> order_;
};

}  // namespace phiggml
