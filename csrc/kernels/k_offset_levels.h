// Rounding to levels, the integers from 0 to n_max, one number in each lane.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// Whether all of a and b lie between the two.
PHIGGML_INLINE bool all_within(float lowest, Floats a, Floats b, float highest) {
#if defined(__AVX512F__)
    const __m512 low = all(lowest), high = all(highest);
    __mmask16 within = _mm512_cmp_ps_mask(a, low, _CMP_GE_OQ);
    within = _mm512_mask_cmp_ps_mask(within, a, high, _CMP_LE_OQ);
    within = _mm512_mask_cmp_ps_mask(within, b, low, _CMP_GE_OQ);
    return _mm512_mask_cmp_ps_mask(within, b, high, _CMP_LE_OQ) == 0xffff;
#else
    return !any(~((a >= lowest) & (a <= highest) & (b >= lowest) & (b <= highest)));
#endif
}

// Floats by the last bits of an index.
struct Lookup {
#if defined(__AVX512F__)
    static constexpr int size = 2 * lanes;
    Floats first, second;

    PHIGGML_INLINE Floats operator()(Ints index) const {
        return _mm512_permutex2var_ps(first, reinterpret_cast<__m512i>(index), second);
    }
#else
    static constexpr int size = lanes;
    Floats first;

    PHIGGML_INLINE Floats operator()(Ints index) const {
        return _mm256_permutevar8x32_ps(first, reinterpret_cast<__m256i>(index));
    }
#endif

    // Of a function of the integers from n_above - size to n_above - 1.
    template <class Function>
    PHIGGML_INLINE Lookup(int n_above, Function function) {
        Ints count;
        for (int lane = 0; lane < lanes; ++lane) {
            count[lane] = lane;
        }
        first = function(select(count < n_above, count, count - size));
#if defined(__AVX512F__)
        count += lanes;
        second = function(select(count < n_above, count, count - size));
#endif
    }
};

// Cut off, then rounded: right for every number; no number counts as 0. The index has the level in its last bits.
template <int n_max>
struct CutLevels {
    static constexpr bool quick = false;

    PHIGGML_INLINE Ints index(Floats v) const {
        return bits(least(greatest(v, all(0.0F)), all(static_cast<float>(n_max))) + rounding_shift);
    }

    PHIGGML_INLINE Floats level(Ints index) const { return from_bits(index) - rounding_shift; }
};

// Rounded as ggml rounds every bit pattern, which is no rounding beyond 22 bits; then cut off.
template <int n_max>
struct OddLevels {
    static constexpr bool quick = false;

    PHIGGML_INLINE Ints index(Floats v) const { return greatest(least(nearest_int(v), all(n_max)), all(0)); }

    PHIGGML_INLINE Floats level(Ints index) const { return to_float(index); }
};

// The quickest that is both for v from `lowest` to `highest`. Few levels come from a table in one instruction, in place
// of three to cut off: what lies beyond them has entries too, one above, as no trial puts numbers higher, the others
// below.
template <int n_max>
struct QuickLevels {
    static constexpr bool quick = true;
    static constexpr bool cuts = n_max + 2 >= Lookup::size;  // without a table it is CutLevels
    static constexpr float lowest = cuts ? -4194303.0F : n_max + 1.75F - Lookup::size;
    static constexpr float highest = cuts ? 4194303.0F : n_max + 1.25F;

    Lookup table{n_max + 2, [](Ints i) { return to_float(greatest(least(i, all(n_max)), all(0))); }};

    PHIGGML_INLINE Ints index(Floats v) const {
        if constexpr (cuts) {
            return CutLevels<n_max>().index(v);
        } else {
            return bits(v + rounding_shift);
        }
    }

    PHIGGML_INLINE Floats level(Ints index) const {
        if constexpr (cuts) {
            return CutLevels<n_max>().level(index);
        } else {
            return table(index);
        }
    }
};

// By the index of QuickLevels: how soon a number reaches the next level, 1 / (level + 1/2); 0 for the last, which it
// never leaves.
template <int n_max>
struct Nearness {
    static constexpr bool possible = n_max < Lookup::size;

    Lookup table{n_max + 2 < Lookup::size ? n_max + 2 : n_max + 1, [](Ints i) {
                     const Floats next = to_float(greatest(i, all(0))) + 0.5F;
                     return select(i < n_max, 1.0F / next, all(0.0F));
                 }};

    PHIGGML_INLINE Floats operator()(Ints index) const { return table(index); }
};

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
