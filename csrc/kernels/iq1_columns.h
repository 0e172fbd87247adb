// Numbers that lie in rows, turned so that vector i has number i of every row.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

// Four numbers of each fourth row, from this row on.
PHIGGML_INLINE Floats fourth_rows(const float * row, std::ptrdiff_t stride) {
    Floats v;
    for (int i = 0; i < lanes / 4; ++i) {
        std::memcpy(reinterpret_cast<char *>(&v) + 16 * i, row + 4 * i * stride, 16);
    }
    return v;
}

// As transpose() of four columns, but by shuffles, which are faster than gathers.
PHIGGML_INLINE void transpose_four(const float * rows, std::ptrdiff_t stride, Floats * columns) {
    const Floats a = fourth_rows(rows, stride), b = fourth_rows(rows + stride, stride);
    const Floats c = fourth_rows(rows + 2 * stride, stride), d = fourth_rows(rows + 3 * stride, stride);
#if defined(__AVX512F__)
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
    columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
    columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
    columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
#else
    const __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
    const __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
    const __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
    const __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
    columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
    columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
    columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
    columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
#endif
}

template <int n_columns>
PHIGGML_INLINE void transpose_by_four(const float * rows, std::ptrdiff_t stride, Floats * columns) {
    static_assert(n_columns % 4 == 0);
    for (int i = 0; i < n_columns; i += 4) {
        transpose_four(rows + i, stride, columns + i);
    }
}

// The sum of n terms of each row, added in their order.
template <typename Term>
PHIGGML_INLINE Floats sum_in_order(const float * rows, std::ptrdiff_t stride, int n, Term term) {
    Floats sum = {};
    for (int i = 0; i < n; i += 4) {
        Floats columns[4];
        transpose_four(rows + i, stride, columns);
        for (const Floats & column : columns) {
            sum += term(column);
        }
    }
    return sum;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
