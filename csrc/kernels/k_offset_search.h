// The search for the step and the minimum of sub-blocks, x = step * level + minimum, one sub-block in each lane. Every
// lane does the float operations of ggml's scalar code in their order, so that it finds the same.
#pragma once

#include "kernels/k_offset_levels.h"
#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// Sub-blocks that are searched in turn: while one waits for its divisions, the sums of the next ones go on.
constexpr int ways = 4;

// What has been found for one sub-block in each lane.
struct Fit {
    Floats step, minimum;
    Floats inverse, base;  // the levels of the best trial are those nearest to inverse * (x - base); no base: no trial
    Ints flat;             // all numbers are the same, and not positive, or zero
    Floats error;
    Floats low, high;  // of the numbers, or lower
    Floats sum_w, sum_wx;
};

// One trial: the step and the minimum that fit the levels nearest to inverse * (x - minimum of the best so far).
struct Trial {
    Floats number;  // from 0; each lane has its own
    Floats inverse;
    Floats nearness;       // greatest of how soon the numbers reach the next level
    Floats step, minimum;  // no numbers where no step fits
};

// How a plan rounds where the quick way does not hold.
template <bool cut, int n_max>
struct CarefulLevels : OddLevels<n_max> {};
template <int n_max>
struct CarefulLevels<true, n_max> : CutLevels<n_max> {};

template <class Plan>
struct Search {
    static constexpr int n = Plan::n, n_max = Plan::n_max;
    // Whether trials are left out that have the same levels as the one before.
    static constexpr bool skips = Plan::skips && Nearness<n_max>::possible;

    using Quick = QuickLevels<n_max>;
    using Careful = CarefulLevels<Plan::cut, n_max>;

    const Floats * x;  // `ways` sub-blocks, one after the other
    const Floats * w;
    Fit * fits;
    Trial trials[ways];
    bool running[ways];
    Floats levels[ways * n];

    PHIGGML_INLINE Search(const Floats * numbers, const Floats * weights, Fit * found)
        : x(numbers), w(weights), fits(found) {}

    // Extremes and sums of two sub-blocks.
    PHIGGML_INLINE void measure(int first) {
        Floats low[2], high[2], sum_w[2], sum_wx[2];
        for (int k = 0; k < 2; ++k) {
            const int at = (first + k) * n;
            low[k] = high[k] = x[at];
            sum_w[k] = w[at];
            sum_wx[k] = w[at] * x[at];
        }
        for (int i = 1; i < n; ++i) {
            for (int k = 0; k < 2; ++k) {
                const int at = (first + k) * n + i;
                low[k] = least(x[at], low[k]);
                high[k] = greatest(x[at], high[k]);
                sum_w[k] += w[at];
                sum_wx[k] += w[at] * x[at];
            }
        }
        for (int k = 0; k < 2; ++k) {
            Fit & fit = fits[first + k];
            fit.low = select(low[k] > 0.0F, all(0.0F), low[k]);
            fit.flat = high[k] <= fit.low;
            fit.high = select(fit.flat, fit.low + 1.0F, high[k]);  // so that such a lane computes with ordinary numbers
            fit.sum_w = sum_w[k];
            fit.sum_wx = sum_wx[k];
        }
    }

    // The trial before the first: its step puts the last level on the greatest number.
    PHIGGML_INLINE void begin(int first) {
        measure(first);
        for (int way = first; way < first + 2; ++way) {
            Fit & fit = fits[way];
            Trial & trial = trials[way];
            fit.base = all(__builtin_nanf(""));
            fit.minimum = trial.minimum = fit.low;
            fit.inverse = trial.inverse = static_cast<float>(n_max) / (fit.high - fit.low);
            fit.step = trial.step = 1.0F / fit.inverse;
            if (is_ordinary(way)) {
                round(way, Quick());
            } else {
                round(way, OddLevels<n_max>());
            }
            trial.number = select(fit.flat, all(static_cast<float>(Plan::n_trials)), all(0.0F));
            running[way] = true;
        }
        Floats errors[2];
        measure_errors(first, errors);
        fits[first].error = errors[0];
        fits[first + 1].error = errors[1];
    }

    template <class Round>
    PHIGGML_INLINE void round(int way, const Round & rounding) {
        for (int i = way * n; i < way * n + n; ++i) {
            levels[i] = rounding.level(rounding.index(trials[way].inverse * (x[i] - fits[way].minimum)));
        }
    }

    // Whether the quick rounding holds for all numbers of a trial: difference and product are monotone in x.
    PHIGGML_INLINE bool is_ordinary(int way) const {
        const Fit & fit = fits[way];
        const Floats inverse = trials[way].inverse;
        return all_within(Quick::lowest, inverse * (fit.low - fit.minimum), inverse * (fit.high - fit.minimum),
                          Quick::highest);
    }

    template <class Round>
    PHIGGML_INLINE void fit_levels(int way, const Round & rounding) {
        constexpr bool quick = skips && Round::quick;
        const Nearness<n_max> nearness_of;
        const Fit & fit = fits[way];
        const Floats inverse = trials[way].inverse, minimum = fit.minimum;
        const Floats * numbers = x + way * n;
        const Floats * weights = w + way * n;
        Floats * levels_out = levels + way * n;
        Floats sum_l{}, sum_l2{}, sum_lx{}, nearness{};
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) {
            const Floats above = numbers[i] - minimum;
            const Ints index = rounding.index(inverse * above);
            const Floats level = rounding.level(index);
            if constexpr (quick) {
                nearness = greatest(above * nearness_of(index), nearness);
            }
            levels_out[i] = level;
            const Floats weighted = weights[i] * level;
            sum_l += weighted;
            sum_l2 += weighted * level;
            sum_lx += weighted * numbers[i];
        }
        trials[way].nearness = quick ? nearness : all(__builtin_inff());
        solve(way, sum_l, sum_l2, sum_lx);
    }

    PHIGGML_INLINE void solve(int way, Floats sum_l, Floats sum_l2, Floats sum_lx) {
        const Fit & fit = fits[way];
        Trial & trial = trials[way];
        Floats determinant = fit.sum_w * sum_l2 - sum_l * sum_l;
        Ints valid = determinant > 0.0F;
        if constexpr (skips) {
            valid &= trial.number < static_cast<float>(Plan::n_trials);
        }
        determinant = select(valid, determinant, all(__builtin_nanf("")));
        trial.step = (fit.sum_w * sum_lx - fit.sum_wx * sum_l) / determinant;
        trial.minimum = (sum_l2 * fit.sum_wx - sum_l * sum_lx) / determinant;
        const Ints above = trial.minimum > 0.0F;
        if (any(above)) {
            trial.minimum = select(above, all(0.0F), trial.minimum);
            trial.step = select(above, sum_lx / sum_l2, trial.step);
        }
    }

    // Two sub-blocks side by side, because one alone would wait for its sum.
    PHIGGML_INLINE void measure_errors(int first, Floats * errors) const {
        Floats error[2] = {};
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) {
            for (int k = 0; k < 2; ++k) {
                const int at = (first + k) * n + i;
                const Trial & trial = trials[first + k];
                const Floats difference = trial.step * levels[at] + trial.minimum - x[at];
                error[k] += w[at] * (Plan::absolute ? magnitude(difference) : difference * difference);
            }
        }
        errors[0] = error[0];
        errors[1] = error[1];
    }

    PHIGGML_INLINE void keep_better(int way, Floats error) {
        Fit & fit = fits[way];
        Trial & trial = trials[way];
        const Ints better = error < fit.error;
        if constexpr (skips) {
            const Floats next = trial.number + 1.0F;
            trial.number = select(better, next, greatest(first_to_change(way), next));
            trial.number = least(trial.number, all(static_cast<float>(Plan::n_trials)));
            running[way] = any(trial.number < static_cast<float>(Plan::n_trials));
        }
        fit.error = select(better, error, fit.error);
        fit.base = select(better, fit.minimum, fit.base);
        fit.inverse = select(better, trial.inverse, fit.inverse);
        fit.step = select(better, trial.step, fit.step);
        fit.minimum = select(better, trial.minimum, fit.minimum);
    }

    // A trial before which no level changes, if the minimum stays. Levels grow with the number of the trial, and are
    // the same as long as its span, the range times the inverse step, is less than where the first number reaches the
    // next level. The margin is much more than what rounding errors amount to, where the range is no denormal number.
    PHIGGML_INLINE Floats first_to_change(int way) const {
        const Floats range = fits[way].high - fits[way].minimum;
        const Floats span = select(range > 1e-30F, range / trials[way].nearness, all(0.0F)) * 0.99999F;
        const Floats number = (span - (Plan::first + static_cast<float>(n_max))) * (1.0F / Plan::interval);
        return nearest_small(number + 0.48F);
    }

    PHIGGML_INLINE void try_next(int way) {
        const Floats span = Plan::first + Plan::interval * trials[way].number + static_cast<float>(n_max);
        trials[way].inverse = span / (fits[way].high - fits[way].minimum);
        if ((Plan::cut && Quick::cuts) || is_ordinary(way)) {
            fit_levels(way, Quick());
        } else {
            fit_levels(way, Careful());
        }
    }

    void run() {
        for (int way = 0; way < ways; way += 2) {
            begin(way);
        }
        for (int round = 0; round < Plan::n_trials; ++round) {
            bool some = false;
            for (int way = 0; way < ways; ++way) {
                if (!skips) {
                    trials[way].number = all(static_cast<float>(round));
                }
                if (running[way]) {
                    try_next(way);
                    some = true;
                }
            }
            if (!some) {
                break;
            }
            for (int way = 0; way < ways; way += 2) {
                Floats errors[2];
                if (running[way] || running[way + 1]) {
                    measure_errors(way, errors);
                    keep_better(way, errors[0]);
                    keep_better(way + 1, errors[1]);
                }
            }
        }
    }
};

// The level of x in the best trial.
template <class Plan>
PHIGGML_INLINE Ints level_of_fit(const Fit & fit, Floats x) {
    const OddLevels<Plan::n_max> odd;
    const CarefulLevels<Plan::cut, Plan::n_max> careful;
    const Floats first = odd.level(odd.index(fit.inverse * (x - fit.low)));
    const Floats later = careful.level(careful.index(fit.inverse * (x - fit.base)));
    const Floats level = select(fit.base == fit.base, later, first);
    return to_int(select(fit.flat, all(0.0F), level));
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
