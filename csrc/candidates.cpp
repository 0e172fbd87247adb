#include "candidates.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "exponential.h"
#include "lane_sum.h"

namespace phiggml {

namespace {

// Keys are distances from the best, in nats; a token that is further away than all buckets weighs next to nothing.
constexpr std::size_t n_buckets = 1024;

std::size_t bucket_of(float key) {
    constexpr float buckets_each = 16;
    return static_cast<std::size_t>(std::min(key * buckets_each, static_cast<float>(n_buckets - 1)));
}

}  // namespace

float relative_bound(float greatest, double probability) {
    return greatest + static_cast<float>(std::log(probability));
}

void Candidates::resize(std::size_t n) {
    tokens_.resize(n);
    logits_.resize(n);
    weights_.clear();
    temperature_ = 1;
}

template <typename Kept>
void Candidates::keep_if(Kept && kept) {
    const bool weighed = !weights_.empty();
    std::size_t n = 0;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
        if (!kept(i)) {
            continue;
        }
        tokens_[n] = tokens_[i];
        logits_[n] = logits_[i];
        if (weighed) {
            weights_[n] = weights_[i];
        }
        ++n;
    }
    tokens_.resize(n);
    logits_.resize(n);
    weights_.resize(weighed ? n : 0);
}

float Candidates::greatest() const {
    return *std::max_element(logits_.begin(), logits_.end());
}

void Candidates::weigh() {
    if (!weights_.empty()) {
        return;
    }
    weighed_from_ = greatest();
    weights_.resize(logits_.size());
    const float from = weighed_from_, temperature = temperature_;
    const float * const logits = logits_.data();
    float * const weights = weights_.data();
    for (std::size_t i = 0; i < weights_.size(); ++i) {
        weights[i] = exponential((logits[i] - from) / temperature);
    }
}

double Candidates::mass() {
    weigh();
    LaneSum sum;
    sum.add(weights_.data(), weights_.size());
    return sum.total();
}

// Keeps those with the least of `keys_`, as many as it takes to have that mass; of equals, the first.
void Candidates::keep_first(double mass) {
    std::array<double, n_buckets> masses{};
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        masses[bucket_of(keys_[i])] += static_cast<double>(weights_[i]);
    }
    std::size_t border = 0;
    double sum = 0;
    while (border < n_buckets - 1 && sum + masses[border] < mass) {
        sum += masses[border++];
    }
    order_.clear();
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        if (bucket_of(keys_[i]) == border) {
            order_.push_back(static_cast<std::uint32_t>(i));
        }
    }
    std::sort(order_.begin(), order_.end(), [this](std::uint32_t a, std::uint32_t b) {
        return keys_[a] < keys_[b] || (keys_[a] == keys_[b] && a < b);
    });
    std::size_t n = 0;
    while (n < order_.size() && sum < mass) {
        sum += static_cast<double>(weights_[order_[n++]]);
    }
    if (n == order_.size()) {
        keep_if([&](std::size_t i) { return bucket_of(keys_[i]) <= border; });
        return;
    }
    const std::uint32_t next = order_[n];
    const float key = keys_[next];
    keep_if([&](std::size_t i) { return keys_[i] < key || (keys_[i] == key && i < next); });
}

void Candidates::keep_at_least(float logit) {
    keep_if([&](std::size_t i) { return logits_[i] >= logit; });
}

void Candidates::keep_top(double mass) {
    weigh();
    keys_.resize(logits_.size());
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        keys_[i] = weighed_from_ - logits_[i];
    }
    keep_first(mass);
}

double Candidates::mean_surprise() {
    const double all = mass();
    double sum = 0;
    for (std::size_t i = 0; i < logits_.size(); ++i) {
        if (weights_[i] > 0) {
            sum += static_cast<double>(weights_[i]) * static_cast<double>(weighed_from_ - logits_[i]);
        }
    }
    return std::log(all) + sum / all;
}

void Candidates::keep_typical(double probability) {
    const double all = mass();
    // A surprise is log(all) more than the distance from the greatest; so is the mean.
    const double mean = mean_surprise() - std::log(all);
    keys_.resize(logits_.size());
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        keys_[i] = static_cast<float>(std::abs(static_cast<double>(weighed_from_ - logits_[i]) - mean));
    }
    keep_first(std::nextafter(probability * all, INFINITY));
}

void Candidates::keep_relative(double probability) {
    keep_at_least(relative_bound(greatest(), probability));
}

void Candidates::drop_top_choices(double probability) {
    const double least = probability * mass();
    std::size_t last = logits_.size();
    for (std::size_t i = 0; i < logits_.size(); ++i) {
        if (static_cast<double>(weights_[i]) >= least && (last == logits_.size() || logits_[i] <= logits_[last])) {
            last = i;
        }
    }
    if (last < logits_.size()) {
        keep_if([&, last](std::size_t i) { return i == last || static_cast<double>(weights_[i]) < least; });
    }
}

double Candidates::relative_entropy() {
    if (logits_.size() < 2) {
        return 0;
    }
    return std::clamp(mean_surprise() / std::log(static_cast<double>(logits_.size())), 0.0, 1.0);
}

void Candidates::heat(float temperature) {
    if (temperature == 0) {
        const auto first = static_cast<std::size_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
        keep_if([first](std::size_t i) { return i == first; });
        return;
    }
    if (temperature != temperature_) {
        weights_.clear();
        temperature_ = temperature;
    }
}

std::size_t Candidates::draw(double share) {
    const double wanted = share * mass();
    double sum = 0;
    std::size_t drawn = 0;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
        if (weights_[i] > 0) {
            drawn = i;
            sum += static_cast<double>(weights_[i]);
            if (sum >= wanted) {
                break;
            }
        }
    }
    return drawn;
}

double Candidates::surprise(std::size_t i) {
    return std::log2(mass() / static_cast<double>(weights_[i]));
}

}  // namespace phiggml
