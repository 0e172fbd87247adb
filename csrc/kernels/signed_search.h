// The search for the step of sub-blocks, x = step * level with levels from -n_max to n_max - 1, one sub-block in each
// lane. Every lane does the float operations of ggml's scalar code in their order, so that it finds the same.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// A trial puts the greatest number on n_max + number / 10. Beyond these numbers a level can leave its range: upwards,
// and, as there is one level more, downwards.
constexpr int last_within = -6, last_not_below = 4, last_trial = 9;

// Rounds what a trial up to `last` can give to the nearest level.
template <int n_max>
struct SignedLevels {
    template <int last>
    PHIGGML_INLINE Floats round(Floats v) const {
        if constexpr (last > last_within) {
            v = least(v, all(static_cast<float>(n_max - 1)));
        }
        if constexpr (last > last_not_below) {
            v = greatest(v, all(static_cast<float>(-n_max)));
        }
        return nearest_small(v);
    }
};

#if defined(__AVX512F__)
// Levels for the last five bits of a number; what lies below and above the levels has entries too.
template <int n_max>
struct LevelTable {
    float values[32];

    constexpr LevelTable() : values() {
        for (int i = 0; i < 32; ++i) {
            const int level = i < 16 ? i : i - 32;
            values[i] = static_cast<float>(level < -n_max ? -n_max : level < n_max ? level : n_max - 1);
        }
    }
};

// From a table where there are few levels: the index is in the sum that rounds.
template <int n_max>
struct TabledLevels32 {
    static constexpr LevelTable<n_max> table{};

    const Floats low = load(table.values), high = load(table.values + lanes);

    template <int>
    PHIGGML_INLINE Floats round(Floats v) const {
        return _mm512_permutex2var_ps(low, reinterpret_cast<__m512i>(bits(v + rounding_shift)), high);
    }
};

template <>
struct SignedLevels<4> : TabledLevels32<4> {};
template <>
struct SignedLevels<8> : TabledLevels32<8> {};
#endif

// The number of greatest magnitude, the first one of several, and its magnitude.
struct Peak {
    Floats number{}, magnitude{};
    Ints none;  // as good as zero: all levels are 0 then, and not n_max, which stands for zero elsewhere
};

template <int n>
PHIGGML_INLINE Peak find_peak(const Floats * x) {
    Peak peak;
    for (int i = 0; i < n; ++i) {
        const Floats size = magnitude(x[i]);
        peak.number = select(size > peak.magnitude, x[i], peak.number);
        peak.magnitude = greatest(size, peak.magnitude);
    }
    peak.none = peak.magnitude < 1e-15F;
    peak.number = select(peak.none, all(1.0F), peak.number);  // so that such a lane computes with ordinary numbers
    return peak;
}

// The levels of the best trial are those nearest to inverse * x.
struct SignedFit {
    Floats step, inverse;
    Peak peak;
};

template <int n, int n_max>
struct SignedSearch {
    static constexpr int at_once = lanes == 16 ? 5 : 3;  // trials, for which there are registers

    const Floats *x, *w;
    Floats wx[n];
    Floats inverse[2 * last_trial + 1], sum_lx[2 * last_trial + 1], sum_l2[2 * last_trial + 1];
    SignedLevels<n_max> levels;
    SignedFit fit;
    Floats best;

    // The sums of the trials from `first` to `last`.
    template <int first, int last>
    PHIGGML_INLINE void try_steps() {
        if constexpr (last - first >= at_once) {
            try_steps<first, first + at_once - 1>();
            try_steps<first + at_once, last>();
        } else {
            constexpr int n_trials = last - first + 1, at = first + last_trial;
            Floats factor[n_trials], lx[n_trials] = {}, l2[n_trials] = {};
            for (int trial = 0; trial < n_trials; ++trial) {
                const float top = static_cast<float>(n_max) + 0.1F * static_cast<float>(first + trial);
                factor[trial] = -top / fit.peak.number;
            }
            for (int i = 0; i < n; ++i) {
                for (int trial = 0; trial < n_trials; ++trial) {
                    const Floats level = levels.template round<last>(factor[trial] * x[i]);
                    lx[trial] += wx[i] * level;
                    l2[trial] += w[i] * level * level;
                }
            }
            for (int trial = 0; trial < n_trials; ++trial) {
                inverse[at + trial] = factor[trial];
                sum_lx[at + trial] = lx[trial];
                sum_l2[at + trial] = l2[trial];
            }
        }
    }

    PHIGGML_INLINE void take_better(int first, int last) {
        for (int at = first + last_trial; at <= last + last_trial; ++at) {
            const Floats lx = sum_lx[at], l2 = sum_l2[at];
            const Floats step = lx / l2;
            const Ints better = (l2 > 0.0F) & (lx * lx > best * l2);
            fit.step = select(better, step, fit.step);
            fit.inverse = select(better, inverse[at], fit.inverse);
            best = select(better, step * lx, best);
        }
    }

    PHIGGML_INLINE void run() {
        fit.peak = find_peak<n>(x);
        for (int i = 0; i < n; ++i) {
            wx[i] = w[i] * x[i];
        }
        try_steps<0, last_not_below>();
        fit.inverse = inverse[last_trial];
        fit.step = select(sum_l2[last_trial] != 0.0F, sum_lx[last_trial] / sum_l2[last_trial], all(0.0F));
        best = fit.step * sum_lx[last_trial];
        try_steps<-last_trial, last_within>();
        take_better(-last_trial, last_within);
        try_steps<last_within + 1, -1>();
        take_better(last_within + 1, -1);
        take_better(1, last_not_below);
        try_steps<last_not_below + 1, last_trial>();
        take_better(last_not_below + 1, last_trial);
        fit.step = select(fit.peak.none, all(0.0F), fit.step);
    }
};

// w has a weight, not negative, for each number of x.
template <int n, int n_max>
SignedFit search_signed(const Floats * x, const Floats * w) {
    SignedSearch<n, n_max> search;
    search.x = x;
    search.w = w;
    search.run();
    return search.fit;
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
