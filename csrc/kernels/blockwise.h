// What quantizers that need no search share. They take `lanes` blocks at a time: the scales of all of these blocks are
// computed in the lanes of one vector, the levels of each block with that block's numbers side by side.
#pragma once

#include "kernels/blocks.h"

namespace phiggml::kernels::PHIGGML_ISA {

typedef float Quad __attribute__((vector_size(16)));

// Pairs and halves within each four lanes: a0 b0 a1 b1, a2 b2 a3 b3, a0 a1 b0 b1, a2 a3 b2 b3.
#if defined(__AVX512F__)
PHIGGML_INLINE Floats first_pairs(Floats a, Floats b) {
    return _mm512_unpacklo_ps(a, b);
}

PHIGGML_INLINE Floats last_pairs(Floats a, Floats b) {
    return _mm512_unpackhi_ps(a, b);
}

PHIGGML_INLINE Floats first_halves(Floats a, Floats b) {
    return _mm512_shuffle_ps(a, b, 0x44);
}

PHIGGML_INLINE Floats last_halves(Floats a, Floats b) {
    return _mm512_shuffle_ps(a, b, 0xee);
}
#else
PHIGGML_INLINE Floats first_pairs(Floats a, Floats b) {
    return _mm256_unpacklo_ps(a, b);
}

PHIGGML_INLINE Floats last_pairs(Floats a, Floats b) {
    return _mm256_unpackhi_ps(a, b);
}

PHIGGML_INLINE Floats first_halves(Floats a, Floats b) {
    return _mm256_shuffle_ps(a, b, 0x44);
}

PHIGGML_INLINE Floats last_halves(Floats a, Floats b) {
    return _mm256_shuffle_ps(a, b, 0xee);
}
#endif

struct Least {
    static PHIGGML_INLINE Floats of(Floats v) { return v; }
    static PHIGGML_INLINE Floats of(Floats a, Floats b) { return least(a, b); }
};

struct Greatest {
    static PHIGGML_INLINE Floats of(Floats v) { return v; }
    static PHIGGML_INLINE Floats of(Floats a, Floats b) { return greatest(a, b); }
};

struct GreatestMagnitude {
    static PHIGGML_INLINE Floats of(Floats v) { return magnitude(v); }
    static PHIGGML_INLINE Floats of(Floats a, Floats b) { return greatest(a, b); }
};

// Four vectors to one, which has in each four lanes the pick of these four lanes of each vector.
template <class Pick>
PHIGGML_INLINE Floats pick_of_four(const Floats * v) {
    const Floats ab = Pick::of(first_pairs(v[0], v[1]), last_pairs(v[0], v[1]));
    const Floats cd = Pick::of(first_pairs(v[2], v[3]), last_pairs(v[2], v[3]));
    return Pick::of(first_halves(ab, cd), last_halves(ab, cd));
}

// As many such vectors as have four lanes for each block, to one lane for each block.
template <class Pick>
PHIGGML_INLINE Floats pick_of_fours(const Floats * v) {
#if defined(__AVX512F__)
    const Floats ab = Pick::of(_mm512_shuffle_f32x4(v[0], v[1], 0x44), _mm512_shuffle_f32x4(v[0], v[1], 0xee));
    const Floats cd = Pick::of(_mm512_shuffle_f32x4(v[2], v[3], 0x44), _mm512_shuffle_f32x4(v[2], v[3], 0xee));
    return Pick::of(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
#else
    return Pick::of(_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[0], v[1], 0x31));
#endif
}

// Lane i: the pick of block i. Which zero it is where zeros of both signs are least or greatest is left open.
template <class Pick, int block>
PHIGGML_INLINE Floats pick_of_blocks(const float * x) {
    Floats fours[lanes / 4];
    for (int i = 0; i < lanes / 4; ++i) {
        Floats four[4];
        for (int j = 0; j < 4; ++j) {
            const float * numbers = x + (4 * i + j) * block;
            four[j] = Pick::of(load(numbers));
            for (int k = lanes; k < block; k += lanes) {
                four[j] = Pick::of(four[j], Pick::of(load(numbers + k)));
            }
        }
        fours[i] = pick_of_four<Pick>(four);
    }
    return pick_of_fours<Pick>(fours);
}

// Four numbers from each of `lanes` rows that lie `stride` numbers apart: columns[i] has number i of every row.
PHIGGML_INLINE void transpose_four(const float * rows, std::ptrdiff_t stride, Floats * columns) {
    Floats v[4];
    for (int i = 0; i < 4; ++i) {
        Quad quads[lanes / 4];
        for (int j = 0; j < lanes / 4; ++j) {
            std::memcpy(&quads[j], rows + (4 * j + i) * stride, sizeof(Quad));
        }
#if defined(__AVX512F__)
        v[i] = __builtin_shufflevector(__builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 4, 5, 6, 7),
                                       __builtin_shufflevector(quads[2], quads[3], 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3,
                                       4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
        v[i] = __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 4, 5, 6, 7);
#endif
    }
    const Floats first_ab = first_pairs(v[0], v[1]), last_ab = last_pairs(v[0], v[1]);
    const Floats first_cd = first_pairs(v[2], v[3]), last_cd = last_pairs(v[2], v[3]);
    columns[0] = first_halves(first_ab, first_cd);
    columns[1] = last_halves(first_ab, first_cd);
    columns[2] = first_halves(last_ab, last_cd);
    columns[3] = last_halves(last_ab, last_cd);
}

// In half precision, ties to even.
PHIGGML_INLINE void store_halves(std::uint8_t * to, Floats v) {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#else
    const __m128i halves = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

// Bit i: the sign bit of lane i.
PHIGGML_INLINE std::uint32_t sign_bits(Ints v) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v));
#else
    return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
#endif
}

// 1 / v, and 0 where v is 0 or its inverse is infinite.
PHIGGML_INLINE Floats finite_inverse(Floats v) {
    const Floats inverse = 1.0F / v;
    return select(magnitude(inverse) <= __FLT_MAX__, inverse, Floats{});
}

// -1, 0 or 1, halves away from zero, for numbers of a magnitude below 1.4. The product is above a half exactly where
// the number is a half or more, and the sum takes a half to the even 0.
template <class V>
PHIGGML_INLINE V nearest_trit(V v) {
    return (v * (1.0F + __FLT_EPSILON__) + rounding_shift) - rounding_shift;
}

// A kernel for all rows from one for `n_blocks` blocks of so many numbers and bytes. What is left at the end is done
// in scratch memory, followed by zeros.
using QuantizeGroup = void (*)(const float * x, std::uint8_t * out);

template <int n_numbers, int n_bytes, int n_blocks, QuantizeGroup quantize_group>
void quantize_groups(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float *) {
    std::int64_t left = n_rows * n_per_row / n_numbers;
    for (; left >= n_blocks; left -= n_blocks) {
        quantize_group(x, out);
        x += n_blocks * n_numbers;
        out += n_blocks * n_bytes;
    }
    if (left > 0) {
        float numbers[n_blocks * n_numbers] = {};
        std::uint8_t blocks[n_blocks * n_bytes];
        std::memcpy(numbers, x, static_cast<std::size_t>(left) * n_numbers * sizeof(float));
        quantize_group(numbers, blocks);
        std::memcpy(out, blocks, static_cast<std::size_t>(left) * n_bytes);
    }
}

// For types whose levels importances do not change.
PHIGGML_INLINE void enter(Table & table, ggml_type type, Quantize quantize) {
    table.types[type].quantize = quantize;
    table.types[type].quantize_weighted = quantize;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
