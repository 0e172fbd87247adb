#include "mirostat.h"

#include <algorithm>
#include <cmath>

namespace phiggml {

// The exponent of Zipf's law is estimated from the likeliest tokens; from it follows how many have the wanted surprise.
std::int32_t Mirostat::number_by_zipf(Logits & logits, float temperature, std::int32_t n_vocab,
                                      Candidates & scratch) const {
    constexpr std::int32_t n_looked_at = 100;
    logits.best(n_looked_at, scratch);
    double products = 0, squares = 0;
    for (std::size_t i = 0; i + 1 < scratch.size(); ++i) {
        const double rank = static_cast<double>(i) + 1;
        const double t = std::log((rank + 1) / rank);
        const double b = static_cast<double>((scratch.logit(i) - scratch.logit(i + 1)) / temperature);
        products += t * b;
        squares += t * t;
    }
    if (squares == 0) {
        return 1;
    }
    const double exponent = products / squares, excess = exponent - 1, n = n_vocab;
    // Near excess = 0 the quotient tends to 1 / log n.
    constexpr double small = 1e-9;
    const double quotient = std::abs(excess) < small ? 1 / std::log(n) : excess / (1 - std::pow(n, -excess));
    const double number = std::pow(quotient * std::exp2(most_), 1 / exponent);
    return number >= 1 ? static_cast<std::int32_t>(std::min(number, n)) : 1;
}

void Mirostat::narrow(Logits & logits, float temperature, std::int32_t n_vocab, Candidates & out) const {
    if (version_ == 1) {
        logits.best(number_by_zipf(logits, temperature, n_vocab, out), out);
        return;
    }
    const double nats = std::log(logits.mass(temperature)) - most_ * std::log(2.0);
    const double least = static_cast<double>(logits.greatest()) + static_cast<double>(temperature) * nats;
    const auto bound = static_cast<float>(std::min(least, static_cast<double>(logits.greatest())));
    constexpr std::int32_t worth_sorting = 4096;
    const std::int32_t n = logits.count(bound);
    if (n <= worth_sorting) {
        logits.best(n, out);
    } else {
        logits.at_least(bound, out);
    }
}

}  // namespace phiggml
