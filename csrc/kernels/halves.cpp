// F16 and BF16 as types to quantize to: numbers of 16 bits, ties to even. They take infinities and NaNs too, because
// what is dequantized is rounded by them.
#include "kernels/blockwise.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace {

PHIGGML_INLINE Ints is_nan(Floats v) {
    return v != v;
}

// NaNs become ggml's one, of either sign.
void quantize_f16(const float * x, std::uint8_t * out) {
    const Floats numbers = load(x);
    const Ints nan = (bits(numbers) & INT32_MIN) | 0x7fc00000;
    store_halves(out, select(is_nan(numbers), from_bits(nan), numbers));
}

typedef std::uint32_t Unsigned __attribute__((vector_size(4 * lanes)));

PHIGGML_INLINE void store_upper_halves(std::uint8_t * out, Unsigned v) {
    v >>= 16;
#if defined(__AVX512F__)
    const __m256i upper = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(v));
#else
    const __m256i words = reinterpret_cast<__m256i>(v);
    const __m128i upper = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#endif
    std::memcpy(out, &upper, sizeof upper);
}

// Rounding could carry from the fraction of a NaN into its sign: these are cut instead, and stay NaNs by one bit.
void quantize_bf16(const float * x, std::uint8_t * out) {
    const Floats numbers = load(x);
    const Unsigned pattern = reinterpret_cast<Unsigned>(numbers);
    const Unsigned rounded = pattern + 0x7fff + ((pattern >> 16) & 1);
    store_upper_halves(out, is_nan(numbers) ? pattern | (64U << 16) : rounded);
}

}  // namespace

void add_halves(Table & table) {
    enter(table, GGML_TYPE_F16, quantize_groups<1, 2, lanes, quantize_f16>);
    enter(table, GGML_TYPE_BF16, quantize_groups<1, 2, lanes, quantize_bf16>);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
