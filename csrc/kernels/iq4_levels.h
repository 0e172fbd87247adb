// The sixteen levels of ggml's 4-bit non-linear types, and the level nearest to a number.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

constexpr int n_levels = 16;
constexpr float levels[n_levels] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A number exactly between two levels belongs to the upper one, what is no number to the uppermost.
constexpr float midpoint(int lower) {
    return 0.5F * (levels[lower] + levels[lower + 1]);
}

PHIGGML_INLINE Ints index_of_nearest_level(Floats v) {
    Ints index = all(n_levels - 1);
    for (int lower = 0; lower < n_levels - 1; ++lower) {
        index += v < midpoint(lower);
    }
    return index;
}

#if defined(__AVX512F__)

// For each bucket of width 8, of which none has two midpoints in it: the midpoint, and the levels on its two sides.
// Buckets are numbered from -17 (about -136) to 14 (about 112), and lie here by the low five bits of that.
struct LevelBuckets {
    float midpoint[32] = {};
    float below[32] = {};
    float above[32] = {};

    constexpr LevelBuckets() {
        for (int bucket = -17; bucket <= 14; ++bucket) {
            int lower = 0;
            while (lower < n_levels - 2 && PHIGGML_ISA::midpoint(lower) < 8.0F * static_cast<float>(bucket) - 4) {
                ++lower;
            }
            midpoint[bucket & 31] = PHIGGML_ISA::midpoint(lower);
            below[bucket & 31] = levels[lower];
            above[bucket & 31] = levels[lower + 1];
        }
    }
};

constexpr LevelBuckets level_buckets;

PHIGGML_INLINE Floats pick_of_32(const float * table, Ints index) {
    return _mm512_permutex2var_ps(load(table), reinterpret_cast<__m512i>(index), load(table + 16));
}

// For numbers of at least -140.
PHIGGML_INLINE Floats nearest_level(Floats v) {
    constexpr float to_multiples_of_8 = 100663296.0F;  // 1.5 * 2^26
    const Ints bucket = bits(least(v, all(levels[n_levels - 1])) + to_multiples_of_8);
    return v < pick_of_32(level_buckets.midpoint, bucket) ? pick_of_32(level_buckets.below, bucket)
                                                          : pick_of_32(level_buckets.above, bucket);
}

#else

// By the number of whole halves in a number, as no midpoint lies between two halves.
struct LevelsOfHalves {
    static constexpr int most = 288;
    float level[2 * most] = {};

    constexpr LevelsOfHalves() {
        int lower = 0;
        for (int halves = -most; halves < most; ++halves) {
            while (lower < n_levels - 1 && 0.5F * static_cast<float>(halves) >= midpoint(lower)) {
                ++lower;
            }
            level[halves + most] = levels[lower];
        }
    }
};

constexpr LevelsOfHalves levels_of_halves;

// For numbers of at most 140 in magnitude; the bounds are for those that another thread has changed meanwhile.
PHIGGML_INLINE Floats nearest_level(Floats v) {
    const Floats most = all(static_cast<float>(LevelsOfHalves::most - 1));
    const Floats halves = _mm256_floor_ps(greatest(least(v + v, most), -most));
    return gather(levels_of_halves.level + LevelsOfHalves::most, to_int(halves));
}

#endif

}  // namespace phiggml::kernels::PHIGGML_ISA
