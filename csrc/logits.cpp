#include "logits.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <functional>

#include "error.h"
#include "exponential.h"
#include "lane_sum.h"

namespace phiggml {

namespace {

constexpr std::size_t group_size = 64;

// The sum of what `map` makes of each number.
template <typename Map>
double sum_of(const float * values, std::size_t n, Map && map) {
    constexpr std::size_t n_at_once = 256;
    std::array<float, n_at_once> mapped;
    LaneSum sum;
    for (std::size_t begin = 0; begin < n; begin += n_at_once) {
        const std::size_t n_here = std::min(n_at_once, n - begin);
        for (std::size_t i = 0; i < n_here; ++i) {
            mapped[i] = map(values[begin + i]);
        }
        sum.add(mapped.data(), n_here);
    }
    return sum.total();
}

}  // namespace

void Logits::look(const float * values, std::int32_t n_vocab) {
    values_ = values;
    n_ = static_cast<std::size_t>(n_vocab);
    const std::size_t n_groups = std::max<std::size_t>(1, n_ / group_size);
    group_greatest_.assign(n_groups, -INFINITY);
    float * const greatest = group_greatest_.data();
    std::uint32_t wrong = 0;
    for (std::size_t begin = 0; begin < n_; begin += n_groups) {
        const float * const row = values + begin;
        const std::size_t n_here = std::min(n_groups, n_ - begin);
        for (std::size_t i = 0; i < n_here; ++i) {
            greatest[i] = greatest[i] > row[i] ? greatest[i] : row[i];
            wrong |= row[i] <= FLT_MAX ? 0U : 1U;
        }
    }
    ordered_ = wrong == 0;
    greatest_ = *std::max_element(group_greatest_.begin(), group_greatest_.end());
}

void Logits::require_finite() const {
    if (!ordered_ || greatest_ == -INFINITY) {
        throw Error(ErrorKind::session,
                    "sample: the model's logits are not finite: its weights are damaged. Convert the checkpoint anew.");
    }
}

std::int32_t Logits::likeliest() const {
    const std::size_t n_groups = group_greatest_.size();
    std::size_t first = n_;
    for (std::size_t group = 0; group < n_groups; ++group) {
        if (group_greatest_[group] == greatest_) {
            std::size_t i = group;
            while (i < first && values_[i] != greatest_) {
                i += n_groups;
            }
            first = std::min(first, i);
        }
    }
    return static_cast<std::int32_t>(first);
}

double Logits::mass(float temperature) const {
    const float greatest = greatest_;
    return sum_of(values_, n_, [=](float x) { return exponential((x - greatest) / temperature); });
}

double Logits::deviation() const {
    const float greatest = greatest_;
    const auto n = sum_of(values_, n_, [](float x) { return x >= -FLT_MAX ? 1.0F : 0.0F; });
    const double mean = sum_of(values_, n_, [=](float x) { return x >= -FLT_MAX ? greatest - x : 0.0F; }) / n;
    const auto from_mean = static_cast<float>(greatest - mean);
    const auto square = [=](float x) { return x >= -FLT_MAX ? (x - from_mean) * (x - from_mean) : 0.0F; };
    return std::sqrt(sum_of(values_, n_, square) / n);
}

std::int32_t Logits::count(float least) const {
    const float bound = std::max(least, -FLT_MAX);
    return static_cast<std::int32_t>(std::count_if(values_, values_ + n_, [bound](float x) { return x >= bound; }));
}

// At least k numbers are as great as this: the greatest of k groups are.
float Logits::bound_of_best(std::int32_t k) {
    const auto n = static_cast<std::size_t>(k);
    if (n > group_greatest_.size()) {
        return -FLT_MAX;
    }
    selected_ = group_greatest_;
    const auto last = selected_.begin() + static_cast<std::ptrdiff_t>(n) - 1;
    std::nth_element(selected_.begin(), last, selected_.end(), std::greater<>());
    return std::max(*last, -FLT_MAX);
}

void Logits::collect(float least) {
    ranked_.clear();
    const std::size_t n_groups = group_greatest_.size();
    for (std::size_t group = 0; group < n_groups; ++group) {
        if (group_greatest_[group] < least) {
            continue;
        }
        for (std::size_t i = group; i < n_; i += n_groups) {
            if (values_[i] >= least) {
                ranked_.push_back({values_[i], static_cast<std::int32_t>(i)});
            }
        }
    }
}

void Logits::best(std::int32_t k, Candidates & out) {
    if (k == 0) {
        out.resize(0);
        return;
    }
    collect(bound_of_best(k));
    const auto precedes = [](const Ranked & a, const Ranked & b) {
        return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    };
    if (static_cast<std::size_t>(k) < ranked_.size()) {
        const auto end = ranked_.begin() + k;
        std::nth_element(ranked_.begin(), end, ranked_.end(), precedes);
        ranked_.erase(end, ranked_.end());
    }
    std::sort(ranked_.begin(), ranked_.end(), precedes);
    out.resize(ranked_.size());
    for (std::size_t i = 0; i < ranked_.size(); ++i) {
        out.tokens()[i] = ranked_[i].token;
        out.logits()[i] = ranked_[i].logit;
    }
}

void Logits::at_least(float least, Candidates & out) const {
    const float bound = std::max(least, -FLT_MAX);
    out.resize(n_);
    std::size_t n = 0;
    for (std::size_t i = 0; i < n_; ++i) {
        out.tokens()[n] = static_cast<std::int32_t>(i);
        out.logits()[n] = values_[i];
        n += values_[i] >= bound ? 1 : 0;
    }
    out.resize(n);
}

}  // namespace phiggml
