// Vectors of 32-bit lanes, as wide as the instruction set that a kernel file is compiled for. Kernel files are compiled
// once for each set, in a namespace of its name. They share no inline function with the rest of the program: the linker
// keeps one copy of those, and it must not be one with instructions that another CPU lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
// GCC 12's own header begins results of AVX-512 intrinsics with themselves.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if defined(__AVX512F__)
#define PHIGGML_ISA avx512
#define PHIGGML_LANES 16
#elif defined(__AVX2__)
#define PHIGGML_ISA avx2
#define PHIGGML_LANES 8
#else
#error "kernels are written for AVX2 and AVX-512"
#endif

#define PHIGGML_INLINE inline __attribute__((always_inline))

namespace phiggml::kernels::PHIGGML_ISA {

constexpr int lanes = PHIGGML_LANES;

typedef float Floats __attribute__((vector_size(4 * PHIGGML_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * PHIGGML_LANES)));  // as a mask: 0 or -1 in each lane

// Reads and writes at any address.
PHIGGML_INLINE Floats load(const float * from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

PHIGGML_INLINE void store(float * to, Floats v) {
    std::memcpy(to, &v, sizeof v);
}

PHIGGML_INLINE Ints load(const std::int32_t * from) {
    Ints v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

PHIGGML_INLINE void store(std::int32_t * to, Ints v) {
    std::memcpy(to, &v, sizeof v);
}

PHIGGML_INLINE Floats all(float x) {
    return x - Floats{};  // keeps the sign of a zero
}

PHIGGML_INLINE Ints all(std::int32_t x) {
    return Ints{} + x;
}

PHIGGML_INLINE Ints bits(Floats v) {
    return reinterpret_cast<Ints>(v);
}

PHIGGML_INLINE Floats from_bits(Ints v) {
    return reinterpret_cast<Floats>(v);
}

PHIGGML_INLINE Floats to_float(Ints v) {
    return __builtin_convertvector(v, Floats);
}

// Towards zero, as a C cast does.
PHIGGML_INLINE Ints to_int(Floats v) {
    return __builtin_convertvector(v, Ints);
}

PHIGGML_INLINE Floats magnitude(Floats v) {
    return from_bits(bits(v) & 0x7fffffff);
}

PHIGGML_INLINE Floats select(Ints mask, Floats yes, Floats no) {
    return mask ? yes : no;
}

PHIGGML_INLINE Ints select(Ints mask, Ints yes, Ints no) {
    return mask ? yes : no;
}

// `a < b ? a : b` and `a > b ? a : b`, which the instructions compute just so: the second where one is no number.
PHIGGML_INLINE Floats least(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#else
    return _mm256_min_ps(a, b);
#endif
}

PHIGGML_INLINE Floats greatest(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#else
    return _mm256_max_ps(a, b);
#endif
}

PHIGGML_INLINE Ints least(Ints a, Ints b) {
    return a < b ? a : b;
}

PHIGGML_INLINE Ints greatest(Ints a, Ints b) {
    return a > b ? a : b;
}

PHIGGML_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(v);
#else
    return _mm256_sqrt_ps(v);
#endif
}

PHIGGML_INLINE bool any(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#else
    return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#endif
}

// table[index] in each lane.
PHIGGML_INLINE Floats gather(const float * table, Ints index) {
#if defined(__AVX512F__)
    return _mm512_i32gather_ps(reinterpret_cast<__m512i>(index), table, 4);
#else
    return _mm256_i32gather_ps(table, reinterpret_cast<__m256i>(index), 4);
#endif
}

PHIGGML_INLINE Ints gather(const std::int32_t * table, Ints index) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_i32gather_epi32(reinterpret_cast<__m512i>(index), table, 4));
#else
    return reinterpret_cast<Ints>(_mm256_i32gather_epi32(table, reinterpret_cast<__m256i>(index), 4));
#endif
}

// Rounds to the nearest integer, ties to even, by the sum that ggml takes: its result is the same for every bit
// pattern, also beyond the 22 bits where that sum is no rounding any more.
constexpr float rounding_shift = 12582912.0F;  // 1.5 * 2^23

PHIGGML_INLINE Ints nearest_int(Floats v) {
    return (bits(v + rounding_shift) & 0x007fffff) - 0x00400000;
}

// The same as a float, for numbers of at most 2^22 only; two operations.
PHIGGML_INLINE Floats nearest_small(Floats v) {
    return (v + rounding_shift) - rounding_shift;
}

// One number to and from half precision, ties to even, as ggml rounds.
PHIGGML_INLINE std::uint16_t to_half(float x) {
    return static_cast<std::uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), 0), 0));
}

PHIGGML_INLINE float from_half(std::uint16_t h) {
    return _cvtsh_ss(h);
}

// Writes the n_columns columns of `lanes` rows: columns[i] has number i of every row. Rows lie `stride` numbers apart.
template <int n_columns>
PHIGGML_INLINE void transpose(const float * rows, std::ptrdiff_t stride, Floats * columns) {
    Ints offsets;
    for (int lane = 0; lane < lanes; ++lane) {
        offsets[lane] = static_cast<std::int32_t>(lane * stride);
    }
    for (int i = 0; i < n_columns; ++i) {
        columns[i] = gather(rows + i, offsets);
    }
}

// The low byte of each lane: what a C cast keeps.
PHIGGML_INLINE void store_bytes(std::uint8_t * to, Ints v) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v));
    std::memcpy(to, &bytes, lanes);
#else
    const __m256i low = _mm256_set1_epi32(0x0c080400);
    const __m256i fours = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), low);
    const __m256i bytes = _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
    std::memcpy(to, &bytes, lanes);
#endif
}

}  // namespace phiggml::kernels::PHIGGML_ISA
