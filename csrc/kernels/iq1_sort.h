// Sorts the numbers of every lane as ggml's stable sort does: equal ones, and zeros of either sign, keep their order.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

typedef double Doubles __attribute__((vector_size(4 * PHIGGML_LANES)));  // of half the lanes
typedef std::int64_t Longs __attribute__((vector_size(4 * PHIGGML_LANES)));
typedef float HalfFloats __attribute__((vector_size(2 * PHIGGML_LANES)));
typedef std::int32_t HalfInts __attribute__((vector_size(2 * PHIGGML_LANES)));

PHIGGML_INLINE Doubles least(Doubles a, Doubles b) {
#if defined(__AVX512F__)
    return _mm512_min_pd(a, b);
#else
    return _mm256_min_pd(a, b);
#endif
}

PHIGGML_INLINE Doubles greatest(Doubles a, Doubles b) {
#if defined(__AVX512F__)
    return _mm512_max_pd(a, b);
#else
    return _mm256_max_pd(a, b);
#endif
}

// Batcher's odd-even merge sort: the pairs of places to put in order.
template <int n>
struct SortingNetwork {
    int size = 0;
    std::uint8_t low[n * 6] = {}, high[n * 6] = {};

    constexpr SortingNetwork() {
        for (int merged = 1; merged < n; merged *= 2) {
            for (int step = merged; step >= 1; step /= 2) {
                for (int start = step % merged; start + step < n; start += 2 * step) {
                    for (int i = start; i < start + step && i + step < n; ++i) {
                        if (i / (2 * merged) == (i + step) / (2 * merged)) {
                            low[size] = static_cast<std::uint8_t>(i);
                            high[size++] = static_cast<std::uint8_t>(i + step);
                        }
                    }
                }
            }
        }
    }
};

// Writes the sorted numbers and where each was. A double has 29 bits more than the float in it: the place goes there,
// so that no two are equal, and is turned round in negative ones, where greater bits mean a lesser number.
template <int n>
PHIGGML_INLINE void sort_lanes(const Floats * numbers, Floats * sorted, Ints * places) {
    static constexpr SortingNetwork<n> network;
    Doubles keys[n];
    for (int half = 0; half < 2; ++half) {
        const std::size_t at = half * sizeof(HalfFloats);
        for (int i = 0; i < n; ++i) {
            const Floats number = numbers[i] + 0.0F;  // makes -0 zero
            HalfFloats part;
            std::memcpy(&part, reinterpret_cast<const char *>(&number) + at, sizeof part);
            const Longs key = reinterpret_cast<Longs>(__builtin_convertvector(part, Doubles));
            keys[i] = reinterpret_cast<Doubles>(key | (((key < 0) & (n - 1)) ^ i));
        }
        for (int i = 0; i < network.size; ++i) {
            const Doubles a = keys[network.low[i]], b = keys[network.high[i]];
            keys[network.low[i]] = least(a, b);
            keys[network.high[i]] = greatest(a, b);
        }
        for (int i = 0; i < n; ++i) {
            const Longs key = reinterpret_cast<Longs>(keys[i]);
            const HalfInts place = __builtin_convertvector((key ^ (key < 0)) & (n - 1), HalfInts);
            const HalfFloats part = __builtin_convertvector(reinterpret_cast<Doubles>(key & -n), HalfFloats);
            std::memcpy(reinterpret_cast<char *>(places + i) + at, &place, sizeof place);
            std::memcpy(reinterpret_cast<char *>(sorted + i) + at, &part, sizeof part);
        }
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA
