// Super-blocks between rows in memory and vectors that have one super-block in each lane.
#pragma once

#include "kernels/blocks.h"
#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// One round of a transposition: the numbers of the first and the second half of the rows, in turn.
PHIGGML_INLINE void interleave(const Floats * from, Floats * to) {
    for (int i = 0; i < lanes / 2; ++i) {
        const Floats a = from[i], b = from[i + lanes / 2];
#if defined(__AVX512F__)
        to[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        to[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
        to[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        to[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
    }
}

// columns[i] becomes number i of every row, for `n` numbers (a multiple of the lanes).
PHIGGML_INLINE void transpose_rows(const float * const * rows, int n, Floats * columns) {
    for (int first = 0; first < n; first += lanes) {
        Floats tile[lanes], other[lanes];
        for (int lane = 0; lane < lanes; ++lane) {
            tile[lane] = load(rows[lane] + first);
        }
        interleave(tile, other);
        interleave(other, tile);
        interleave(tile, other);
#if defined(__AVX512F__)
        interleave(other, columns + first);
#else
        std::memcpy(columns + first, other, sizeof other);
#endif
    }
}

// Where the rows of a batch of super-blocks begin; spare lanes repeat the last one. With a period, which is in
// super-blocks, those rows come again and again.
PHIGGML_INLINE void load_batch(const float * x, std::int64_t first, std::int64_t n, std::int64_t period,
                               Floats * columns) {
    const float * rows[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
        rows[lane] = x + (first + (lane < n ? lane : n - 1)) % period * QK_K;
    }
    transpose_rows(rows, QK_K, columns);
}

// Writes the blocks of the first n lanes: words[i] has bytes 4 i to 4 i + 3 of each.
PHIGGML_INLINE void store_batch(const Ints * words, int n_words, std::int64_t n, std::uint8_t * out) {
    for (std::int64_t lane = 0; lane < n; ++lane) {
        for (int i = 0; i < n_words; ++i) {
            const std::int32_t word = words[i][lane];
            std::memcpy(out + 4 * (lane * n_words + i), &word, sizeof word);
        }
    }
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
