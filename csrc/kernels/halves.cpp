// F16 and BF16 as types to quantize to: numbers of 16 bits, ties to even.
#include "kernels/blockwise.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace {

void quantize_f16(const float * x, std::uint8_t * out) {
    store_halves(out, load(x));
}

// The upper half of each lane.
PHIGGML_INLINE void store_upper(std::uint8_t * out, Ints v) {
    typedef std::uint32_t Unsigned __attribute__((vector_size(4 * lanes)));
    const Unsigned uppers = reinterpret_cast<Unsigned>(v) >> 16;
#if defined(__AVX512F__)
    const __m256i upper = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(uppers));
#else
    const __m256i words = reinterpret_cast<__m256i>(uppers);
    const __m128i upper = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#endif
    std::memcpy(out, &upper, sizeof upper);
}

void quantize_bf16(const float * x, std::uint8_t * out) {
    const Ints numbers = bits(load(x));
    store_upper(out, numbers + 0x7fff + ((numbers >> 16) & 1));
}

}  // namespace

void add_halves(Table & table) {
    enter(table, GGML_TYPE_F16, quantize_groups<1, 2, lanes, quantize_f16>);
    enter(table, GGML_TYPE_BF16, quantize_groups<1, 2, lanes, quantize_bf16>);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
