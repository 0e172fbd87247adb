// The steps and minima of a super-block's sub-blocks as small integers, one super-block in each lane.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// A float for each lane and what half precision makes of it.
struct Halves {
    Ints bits;
    Floats value;
};

PHIGGML_INLINE Halves to_halves(Floats v) {
    Halves halves;
#if defined(__AVX512F__)
    const __m256i packed = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    halves.bits = reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(packed));
    halves.value = _mm512_cvtph_ps(packed);
#else
    const __m128i packed = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    halves.bits = reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(packed));
    halves.value = _mm256_cvtph_ps(packed);
#endif
    return halves;
}

// Steps, and negated minima, of n sub-blocks: levels times one step.
template <int n>
struct Scales {
    Floats value[n];
    Ints level[n];
    Halves step;
};

// Puts the last level on the greatest value. Only the last 8 bits of a level are kept.
template <int n, int n_max>
PHIGGML_INLINE void round_scales(Scales<n> & scales) {
    Floats greatest_value{};
    for (int j = 0; j < n; ++j) {
        greatest_value = greatest(scales.value[j], greatest_value);
    }
    const Ints some = greatest_value > 0.0F;
    const Floats inverse = select(some, static_cast<float>(n_max) / greatest_value, all(0.0F));
    for (int j = 0; j < n; ++j) {
        scales.level[j] = nearest_int(inverse * scales.value[j]) & 0xff;
    }
    scales.step = to_halves(greatest_value / static_cast<float>(n_max));
}

// The search for the step of one kind of scales: those of the steps, or those of the minima.
template <int n, int n_max>
struct ScaleFit {
    Floats value[n];
    Floats level[n];
    Floats sum_lx, sum_l2;
    Ints none;     // all are as good as zero
    Ints strange;  // ggml's code leaves the range of its integers: to be left to it

    // The best of nine steps about the one that puts the last level on the greatest value.
    PHIGGML_INLINE void begin(const Floats * w) {
        Floats top{};
        strange = Ints{};
        for (int j = 0; j < n; ++j) {
            top = greatest(top, value[j]);
            strange |= ~((value[j] >= 0.0F) & (value[j] < 1e30F));
        }
        none = top < 1e-15F;
        strange &= ~none;
        top = select(none | strange, all(1.0F), top);
        Floats best_inverse = static_cast<float>(n_max) / top;
        Floats best = error(best_inverse, w);
        for (int number = -4; number <= 4; ++number) {
            if (number != 0) {
                const Floats inverse = (0.1F * static_cast<float>(number) + static_cast<float>(n_max)) / top;
                const Floats current = error(inverse, w);
                best_inverse = select(current < best, inverse, best_inverse);
                best = select(current < best, current, best);
            }
        }
        sum_lx = sum_l2 = Floats{};
        for (int j = 0; j < n; ++j) {
            level[j] = nearest(best_inverse * value[j]);
            sum_lx += w[j] * value[j] * level[j];
            sum_l2 += w[j] * level[j] * level[j];
        }
    }

    PHIGGML_INLINE static Floats nearest(Floats v) { return least(nearest_small(v), all(static_cast<float>(n_max))); }

    PHIGGML_INLINE Floats error(Floats inverse, const Floats * w) const {
        const Floats step = 1.0F / inverse;
        Floats sum{};
        for (int j = 0; j < n; ++j) {
            const Floats difference = value[j] - step * nearest(inverse * value[j]);
            sum += w[j] * difference * difference;
        }
        return sum;
    }

    // Moves one level to where the others want it, if that fits better. Tells whether it has moved.
    PHIGGML_INLINE Ints improve(int j, Floats w) {
        const Floats wx = w * value[j];
        Floats lx = sum_lx - wx * level[j];
        Floats l2 = sum_l2 - w * level[j] * level[j];
        const Ints possible = (lx > 0.0F) & (l2 > 0.0F);
        const Floats wanted = value[j] * l2 / lx;
        strange |= possible & ~none & ~(wanted <= 4e6F);
        const Floats moved = nearest(wanted);
        lx += wx * moved;
        l2 += w * moved * moved;
        const Ints better = possible & (moved != level[j]) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
        level[j] = select(better, moved, level[j]);
        sum_lx = select(better, lx, sum_lx);
        sum_l2 = select(better, l2, sum_l2);
        return better;
    }

    PHIGGML_INLINE void finish(Scales<n> & scales) const {
        for (int j = 0; j < n; ++j) {
            scales.level[j] = to_int(select(none | strange, all(0.0F), level[j]));
        }
        scales.step = to_halves(select((sum_l2 > 0.0F) & ~none, sum_lx / sum_l2, all(0.0F)));
    }
};

// The same with a weight for each sub-block, by a search. Gives the lanes that are to be left to ggml.
template <int n, int n_max>
Ints fit_scales(const Floats * w, Scales<n> & steps, Scales<n> & minima) {
    ScaleFit<n, n_max> of_steps, of_minima;
    std::memcpy(of_steps.value, steps.value, sizeof steps.value);
    std::memcpy(of_minima.value, minima.value, sizeof minima.value);
    of_steps.begin(w);
    of_minima.begin(w);
    for (int round = 0; round < 5; ++round) {
        Ints moved{};
        for (int j = 0; j < n; ++j) {
            moved |= of_steps.improve(j, w[j]);
            moved |= of_minima.improve(j, w[j]);
        }
        if (!any(moved)) {
            break;
        }
    }
    of_steps.finish(steps);
    of_minima.finish(minima);
    return of_steps.strange | of_minima.strange;
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
