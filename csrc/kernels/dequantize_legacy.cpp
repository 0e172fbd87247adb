// The types of one scale for each block of 32 to 256 numbers, and F16, to numbers. BF16 has no kernel: ggml's own loop
// runs at the speed of memory.
#include "kernels/dequantize_bytes.h"
#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

PHIGGML_INLINE void dequantize_q4_0(const block_q4_0 & block, float * out) {
    const float d = from_half(block.d);
    for (int i = 0; i < 16; i += lanes) {
        const Ints packed = widen(block.qs + i);
        store(out + i, to_float((packed & 15) - 8) * d);
        store(out + 16 + i, to_float((packed >> 4) - 8) * d);
    }
}

PHIGGML_INLINE void dequantize_q4_1(const block_q4_1 & block, float * out) {
    const float d = from_half(block.data.data.d), m = from_half(block.data.data.m);
    for (int i = 0; i < 16; i += lanes) {
        const Ints packed = widen(block.qs + i);
        store(out + i, to_float(packed & 15) * d + m);
        store(out + 16 + i, to_float(packed >> 4) * d + m);
    }
}

// 16 in the lanes whose bit of the first `lanes` is set.
PHIGGML_INLINE Ints sixteens(std::uint32_t fifth_bits) {
    return (all(static_cast<std::int32_t>(fifth_bits << 4)) >> lane_numbers()) & 16;
}

PHIGGML_INLINE void dequantize_q5_0(const block_q5_0 & block, float * out) {
    const float d = from_half(block.d);
    std::uint32_t high;
    std::memcpy(&high, block.qh, sizeof high);
    for (int i = 0; i < 16; i += lanes) {
        const Ints packed = widen(block.qs + i);
        store(out + i, to_float(((packed & 15) | sixteens(high >> i)) - 16) * d);
        store(out + 16 + i, to_float(((packed >> 4) | sixteens(high >> (16 + i))) - 16) * d);
    }
}

PHIGGML_INLINE void dequantize_q5_1(const block_q5_1 & block, float * out) {
    const float d = from_half(block.data.data.d), m = from_half(block.data.data.m);
    std::uint32_t high;
    std::memcpy(&high, block.qh, sizeof high);
    for (int i = 0; i < 16; i += lanes) {
        const Ints packed = widen(block.qs + i);
        store(out + i, to_float((packed & 15) | sixteens(high >> i)) * d + m);
        store(out + 16 + i, to_float((packed >> 4) | sixteens(high >> (16 + i))) * d + m);
    }
}

PHIGGML_INLINE void dequantize_q8_0(const block_q8_0 & block, float * out) {
    const float d = from_half(block.d);
    for (int i = 0; i < 32; i += lanes) {
        store(out + i, to_float(widen(block.qs + i)) * d);
    }
}

PHIGGML_INLINE void dequantize_q1_0(const block_q1_0 & block, float * out) {
    const Floats minus_d = all(-from_half(block.d));
    for (int i = 0; i < QK1_0; i += 16) {
        std::uint16_t positive;
        std::memcpy(&positive, block.qs + i / 8, sizeof positive);
        for (int j = 0; j < 16; j += lanes) {
            store(out + i + j, negate_where(positive >> j, minus_d));
        }
    }
}

PHIGGML_INLINE void dequantize_q2_0(const block_q2_0 & block, float * out) {
    const float d = from_half(block.d);
    for (int i = 0; i < QK2_0; i += 16) {
        std::uint32_t packed;
        std::memcpy(&packed, block.qs + i / 4, sizeof packed);
        for (int j = 0; j < 16; j += lanes) {
            const Ints level = (all(static_cast<std::int32_t>(packed >> (2 * j))) >> (2 * lane_numbers())) & 3;
            store(out + i + j, to_float(level - 1) * d);
        }
    }
}

// Five digits of base 3 in a byte, as a fraction: each is what thrice the fraction has before the point.
PHIGGML_INLINE void five_digits(const std::uint8_t * from, int n_bytes, float d, float * out) {
    for (int i = 0; i < n_bytes; i += lanes) {
        Ints fraction = widen(from + i);
        for (int digit = 0; digit < 5; ++digit) {
            const Ints thrice = fraction + (fraction << 1);
            fraction = thrice & 255;
            store(out + n_bytes * digit + i, to_float((thrice >> 8) - 1) * d);
        }
    }
}

PHIGGML_INLINE void dequantize_tq1_0(const block_tq1_0 & block, float * out) {
    const float d = from_half(block.d);
    five_digits(block.qs, 32, d, out);
    five_digits(block.qs + 32, 16, d, out + 160);
    std::uint32_t last;
    std::memcpy(&last, block.qh, sizeof last);
    constexpr std::int32_t power[4] = {1, 3, 9, 27};
    for (int i = 0; i < 16; i += lanes) {
        Ints powers;
        for (int lane = 0; lane < lanes; ++lane) {
            powers[lane] = power[(i + lane) / 4];
        }
        const Ints bytes = (all(static_cast<std::int32_t>(last)) >> (8 * (lane_numbers() & 3))) & 255;
        const Ints fraction = (bytes * powers) & 255;
        store(out + 240 + i, to_float(((3 * fraction) >> 8) - 1) * d);
    }
}

PHIGGML_INLINE void dequantize_tq2_0(const block_tq2_0 & block, float * out) {
    const float d = from_half(block.d);
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 32; i += lanes) {
            const Ints packed = widen(block.qs + 32 * half + i);
            for (int j = 0; j < 4; ++j) {
                store(out + 128 * half + 32 * j + i, to_float(((packed >> (2 * j)) & 3) - 1) * d);
            }
        }
    }
}

// Half of 2^(e - 127).
PHIGGML_INLINE float half_of_e8m0(std::uint8_t e) {
    const std::uint32_t pattern = e < 2 ? 0x00200000U << e : static_cast<std::uint32_t>(e - 1) << 23;
    float x;
    std::memcpy(&x, &pattern, sizeof x);
    return x;
}

// Half of a number of four bits of exponent and three of mantissa; the sign is ignored, and 0x7f (but not 0xff) is
// zero.
PHIGGML_INLINE float half_of_ue4m3(std::uint8_t e4m3) {
    const std::uint32_t pattern = (static_cast<std::uint32_t>(e4m3 & 0x7f) << 20) + (119U << 23);
    float normal;
    std::memcpy(&normal, &pattern, sizeof normal);
    const float denormal = static_cast<float>(e4m3 & 7) * 0x1p-10F;
    return e4m3 == 0x7f ? 0.0F : (e4m3 & 0x78) == 0 ? denormal : normal;
}

PHIGGML_INLINE void dequantize_mxfp4(const block_mxfp4 & block, float * out) {
    write_sixteen_and_sixteen(SixteenNumbers(SixteenNumbers(kvalues_mxfp4), half_of_e8m0(block.e)), block.qs, out);
}

// Eight bytes have the 16 numbers of a sub-block: the first eight in their low halves, the others in the high ones.
PHIGGML_INLINE void dequantize_nvfp4(const block_nvfp4 & block, float * out) {
    const SixteenNumbers levels(kvalues_mxfp4);
    for (int i = 0; i < QK_NVFP4 / QK_NVFP4_SUB; ++i) {
        const SixteenNumbers numbers(levels, half_of_ue4m3(block.d[i]));
        std::uint64_t packed;
        std::memcpy(&packed, block.qs + 8 * i, sizeof packed);
        const __m128i bytes = _mm_set_epi64x(static_cast<long long>(packed >> 4), static_cast<long long>(packed));
        store(out + QK_NVFP4_SUB * i, numbers.at(widen_unsigned(bytes)));
        if constexpr (lanes == 8) {
            store(out + QK_NVFP4_SUB * i + 8, numbers.at(widen_unsigned(_mm_srli_si128(bytes, 8))));
        }
    }
}

PHIGGML_INLINE Floats load_f16(const std::uint8_t * from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#else
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#endif
}

void dequantize_f16(const std::uint8_t * data, float * out, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        store(out + i, load_f16(data + 2 * i));
    }
    for (; i < n; ++i) {
        std::uint16_t half;
        std::memcpy(&half, data + 2 * i, sizeof half);
        out[i] = from_half(half);
    }
}

}  // namespace

void add_dequantize_legacy(Table & table) {
    table.types[GGML_TYPE_Q4_0].dequantize = dequantize_blocks<block_q4_0, QK4_0, dequantize_q4_0>;
    table.types[GGML_TYPE_Q4_1].dequantize = dequantize_blocks<block_q4_1, QK4_1, dequantize_q4_1>;
    table.types[GGML_TYPE_Q5_0].dequantize = dequantize_blocks<block_q5_0, QK5_0, dequantize_q5_0>;
    table.types[GGML_TYPE_Q5_1].dequantize = dequantize_blocks<block_q5_1, QK5_1, dequantize_q5_1>;
    table.types[GGML_TYPE_Q8_0].dequantize = dequantize_blocks<block_q8_0, QK8_0, dequantize_q8_0>;
    table.types[GGML_TYPE_Q1_0].dequantize = dequantize_blocks<block_q1_0, QK1_0, dequantize_q1_0>;
    table.types[GGML_TYPE_Q2_0].dequantize = dequantize_blocks<block_q2_0, QK2_0, dequantize_q2_0>;
    table.types[GGML_TYPE_TQ1_0].dequantize = dequantize_blocks<block_tq1_0, QK_K, dequantize_tq1_0>;
    table.types[GGML_TYPE_TQ2_0].dequantize = dequantize_blocks<block_tq2_0, QK_K, dequantize_tq2_0>;
    table.types[GGML_TYPE_MXFP4].dequantize = dequantize_blocks<block_mxfp4, QK_MXFP4, dequantize_mxfp4>;
    table.types[GGML_TYPE_NVFP4].dequantize = dequantize_blocks<block_nvfp4, QK_NVFP4, dequantize_nvfp4>;
    table.types[GGML_TYPE_F16].dequantize = dequantize_f16;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
