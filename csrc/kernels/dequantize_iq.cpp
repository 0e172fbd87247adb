// The IQ types to numbers: groups of 4 or 8 levels come from ggml's grids as bytes, and are widened to lanes.
#include "kernels/dequantize_bytes.h"
#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// The bytes of as many groups of the grid as fill the lanes.
PHIGGML_INLINE __m128i grid_bytes(const std::uint64_t * grid, const std::uint32_t * index) {
    if constexpr (lanes == 8) {
        return _mm_cvtsi64_si128(static_cast<long long>(grid[index[0]]));
    } else {
        return _mm_set_epi64x(static_cast<long long>(grid[index[1]]), static_cast<long long>(grid[index[0]]));
    }
}

PHIGGML_INLINE __m128i grid_bytes(const std::uint32_t * grid, const std::uint32_t * index) {
    const auto group = [=](int i) { return static_cast<std::int32_t>(grid[index[i]]); };
    if constexpr (lanes == 8) {
        return _mm_set_epi32(0, 0, group(1), group(0));
    } else {
        return _mm_set_epi32(group(3), group(2), group(1), group(0));
    }
}

// What IQ2 and IQ3 have in 32 numbers: a sign bit for each, grid indices, and a scale for each half.
template <typename Group>
PHIGGML_INLINE void write_signed(const Group * grid, const std::uint32_t * index, std::uint32_t signs,
                                 const float (&scale)[2], float * out) {
    for (int i = 0; i < 32; i += lanes) {
        const Floats levels = to_float(widen_unsigned(grid_bytes(grid, index + i / static_cast<int>(sizeof(Group)))));
        store(out + i, negate_where(signs >> i, scale[i / 16] * levels));
    }
}

// Four times seven signs, of which an even number is negative with the eighth that follows from it.
PHIGGML_INLINE std::uint32_t four_times_eight_signs(std::uint32_t packed) {
    std::uint32_t signs = 0;
    for (int i = 0; i < 4; ++i) {
        signs |= static_cast<std::uint32_t>(ksigns_iq2xs[(packed >> (7 * i)) & 127]) << (8 * i);
    }
    return signs;
}

// d * (0.5 + i) * factor for each of the 16 scales that a sub-block may have.
PHIGGML_INLINE void sixteen_scales(float d, float factor, float * scales) {
    for (int i = 0; i < 16; i += lanes) {
        store(scales + i, d * (0.5F + to_float(i + lane_numbers())) * factor);
    }
}

PHIGGML_INLINE void dequantize_iq2_xxs(const block_iq2_xxs & block, float * out) {
    float scales[16];
    sixteen_scales(from_half(block.d), 0.25F, scales);
    for (int i = 0; i < 8; ++i) {
        std::uint32_t indices, signs;
        std::memcpy(&indices, block.qs + 4 * i, sizeof indices);
        std::memcpy(&signs, block.qs + 4 * i + 2, sizeof signs);
        const std::uint32_t index[4] = {indices & 255, (indices >> 8) & 255, (indices >> 16) & 255, indices >> 24};
        const float scale = scales[signs >> 28];
        write_signed(iq2xxs_grid, index, four_times_eight_signs(signs), {scale, scale}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq2_xs(const block_iq2_xs & block, float * out) {
    float scales[16];
    sixteen_scales(from_half(block.d), 0.25F, scales);
    for (int i = 0; i < 8; ++i) {
        std::uint32_t index[4], signs = 0;
        for (int j = 0; j < 4; ++j) {
            const std::uint32_t packed = block.qs[4 * i + j];
            index[j] = packed & 511;
            signs |= static_cast<std::uint32_t>(ksigns_iq2xs[packed >> 9]) << (8 * j);
        }
        const std::uint8_t scale = block.scales[i];
        write_signed(iq2xs_grid, index, signs, {scales[scale & 15], scales[scale >> 4]}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq2_s(const block_iq2_s & block, float * out) {
    float scales[16];
    sixteen_scales(from_half(block.d), 0.25F, scales);
    for (int i = 0; i < 8; ++i) {
        std::uint32_t index[4], signs;
        std::memcpy(&signs, block.qs + QK_K / 8 + 4 * i, sizeof signs);
        for (int j = 0; j < 4; ++j) {
            index[j] = block.qs[4 * i + j] | ((block.qh[i] << (8 - 2 * j)) & 0x300);
        }
        const std::uint8_t scale = block.scales[i];
        write_signed(iq2s_grid, index, signs, {scales[scale & 15], scales[scale >> 4]}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq3_xxs(const block_iq3_xxs & block, float * out) {
    float scales[16];
    sixteen_scales(from_half(block.d), 0.5F, scales);
    for (int i = 0; i < 8; ++i) {
        std::uint32_t index[8], signs;
        std::memcpy(&signs, block.qs + QK_K / 4 + 4 * i, sizeof signs);
        for (int j = 0; j < 8; ++j) {
            index[j] = block.qs[8 * i + j];
        }
        const float scale = scales[signs >> 28];
        write_signed(iq3xxs_grid, index, four_times_eight_signs(signs), {scale, scale}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq3_s(const block_iq3_s & block, float * out) {
    const float d = from_half(block.d);
    float scales[16];
    for (int i = 0; i < 16; i += lanes) {
        store(scales + i, d * to_float(1 + 2 * (i + lane_numbers())));
    }
    for (int i = 0; i < 8; ++i) {
        std::uint32_t index[8], signs;
        std::memcpy(&signs, block.signs + 4 * i, sizeof signs);
        for (int j = 0; j < 8; ++j) {
            index[j] = block.qs[8 * i + j] | ((block.qh[i] << (8 - j)) & 256);
        }
        const float scale = scales[(block.scales[i / 2] >> (4 * (i % 2))) & 15];
        write_signed(iq3s_grid, index, signs, {scale, scale}, out + 32 * i);
    }
}

// The eight odd multiples of d that a sub-block of IQ1 may have for a scale.
PHIGGML_INLINE void eight_odd_multiples(float d, float * scales) {
    scale_bytes(d, 0x0f0d0b0907050301U, scales);
}

// 32 numbers of IQ1: their levels -1, 0, 1 are all moved by delta, down where `down` has a bit set.
PHIGGML_INLINE void write_moved(const std::uint32_t * index, std::uint32_t down, const float (&scale)[2], float * out) {
    for (int i = 0; i < 32; i += lanes) {
        const Floats levels = to_float(widen_signed(grid_bytes(iq1s_grid, index + i / 8)));
        store(out + i, scale[i / 16] * (levels + negate_where(down >> i, all(IQ1S_DELTA))));
    }
}

PHIGGML_INLINE void dequantize_iq1_s(const block_iq1_s & block, float * out) {
    float scales[8];
    eight_odd_multiples(from_half(block.d), scales);
    for (int i = 0; i < 8; ++i) {
        const std::uint32_t high = block.qh[i];
        std::uint32_t index[4];
        for (int j = 0; j < 4; ++j) {
            index[j] = block.qs[4 * i + j] | (((high >> (3 * j)) & 7) << 8);
        }
        const float scale = scales[(high >> 12) & 7];
        write_moved(index, high & 0x8000 ? UINT32_MAX : 0, {scale, scale}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq1_m(const block_iq1_m & block, float * out) {
    std::uint64_t packed_scales;  // four times four scales of three bits, and four bits of the half that scales them
    std::memcpy(&packed_scales, block.scales, sizeof packed_scales);
    const std::uint64_t d = ((packed_scales >> 12) & 0x000f) | ((packed_scales >> 24) & 0x00f0) |
                            ((packed_scales >> 36) & 0x0f00) | ((packed_scales >> 48) & 0xf000);
    float scales[8];
    eight_odd_multiples(from_half(static_cast<std::uint16_t>(d)), scales);
    for (int i = 0; i < 8; ++i) {
        std::uint16_t high;
        std::memcpy(&high, block.qh + 2 * i, sizeof high);
        std::uint32_t index[4], down = 0;
        for (int j = 0; j < 4; ++j) {
            const std::uint32_t four_bits = high >> (4 * j);
            index[j] = block.qs[4 * i + j] | ((four_bits & 7) << 8);
            down |= ((four_bits >> 3) & 1) * (255U << (8 * j));
        }
        const std::uint64_t of_these = packed_scales >> (16 * (i / 2) + 6 * (i % 2));
        write_moved(index, down, {scales[of_these & 7], scales[(of_these >> 3) & 7]}, out + 32 * i);
    }
}

PHIGGML_INLINE void dequantize_iq4_nl(const block_iq4_nl & block, float * out) {
    const SixteenNumbers numbers(SixteenNumbers(kvalues_iq4nl), from_half(block.d));
    write_sixteen_and_sixteen(numbers, block.qs, out);
}

PHIGGML_INLINE void dequantize_iq4_xs(const block_iq4_xs & block, float * out) {
    const SixteenNumbers levels(kvalues_iq4nl);
    const float d = from_half(block.d);
    for (int i = 0; i < 8; ++i) {
        const int low = (block.scales_l[i / 2] >> (4 * (i % 2))) & 15;
        const int high = (block.scales_h >> (2 * i)) & 3;
        const SixteenNumbers numbers(levels, d * static_cast<float>((low | (high << 4)) - 32));
        write_sixteen_and_sixteen(numbers, block.qs + 16 * i, out + 32 * i);
    }
}

}  // namespace

void add_dequantize_iq(Table & table) {
    table.types[GGML_TYPE_IQ1_S].dequantize = dequantize_blocks<block_iq1_s, QK_K, dequantize_iq1_s>;
    table.types[GGML_TYPE_IQ1_M].dequantize = dequantize_blocks<block_iq1_m, QK_K, dequantize_iq1_m>;
    table.types[GGML_TYPE_IQ2_XXS].dequantize = dequantize_blocks<block_iq2_xxs, QK_K, dequantize_iq2_xxs>;
    table.types[GGML_TYPE_IQ2_XS].dequantize = dequantize_blocks<block_iq2_xs, QK_K, dequantize_iq2_xs>;
    table.types[GGML_TYPE_IQ2_S].dequantize = dequantize_blocks<block_iq2_s, QK_K, dequantize_iq2_s>;
    table.types[GGML_TYPE_IQ3_XXS].dequantize = dequantize_blocks<block_iq3_xxs, QK_K, dequantize_iq3_xxs>;
    table.types[GGML_TYPE_IQ3_S].dequantize = dequantize_blocks<block_iq3_s, QK_K, dequantize_iq3_s>;
    table.types[GGML_TYPE_IQ4_NL].dequantize = dequantize_blocks<block_iq4_nl, QK4_NL, dequantize_iq4_nl>;
    table.types[GGML_TYPE_IQ4_XS].dequantize = dequantize_blocks<block_iq4_xs, QK_K, dequantize_iq4_xs>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
