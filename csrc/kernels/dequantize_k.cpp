// Q2_K to Q6_K to numbers: bytes of packed levels are widened to lanes once, and every level in them is shifted out.
#include "kernels/dequantize_bytes.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

PHIGGML_INLINE std::uint64_t eight_bytes(std::uint32_t low, std::uint32_t high) {
    return low | (static_cast<std::uint64_t>(high) << 32);
}

PHIGGML_INLINE std::uint32_t word_at(const std::uint8_t * from) {
    std::uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

PHIGGML_INLINE void dequantize_q2_k(const block_q2_K & block, float * out) {
    const float d = from_half(block.data.data.d), dmin = from_half(block.data.data.dmin);
    float scale[16], min[16];
    for (int i = 0; i < 16; i += lanes) {
        const Ints packed = widen(block.scales + i);
        store(scale + i, d * to_float(packed & 15));
        store(min + i, dmin * to_float(packed >> 4));
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 32; i += lanes) {
            const Ints packed = widen(block.qs + 32 * half + i);
            for (int j = 0; j < 4; ++j) {
                const int sub_block = 8 * half + 2 * j + i / 16;
                const Floats level = to_float((packed >> (2 * j)) & 3);
                store(out + 128 * half + 32 * j + i, scale[sub_block] * level - min[sub_block]);
            }
        }
    }
}

PHIGGML_INLINE void scales_of_q3_k(const block_q3_K & block, float * scale) {
    const std::uint32_t a = word_at(block.scales), b = word_at(block.scales + 4), high = word_at(block.scales + 8);
    const std::uint32_t six_bits[4] = {
        (a & 0x0f0f0f0f) | ((high << 4) & 0x30303030),
        (b & 0x0f0f0f0f) | ((high << 2) & 0x30303030),
        ((a >> 4) & 0x0f0f0f0f) | (high & 0x30303030),
        ((b >> 4) & 0x0f0f0f0f) | ((high >> 2) & 0x30303030),
    };
    const float d = from_half(block.d);
    std::uint8_t bytes[16];
    std::memcpy(bytes, six_bits, sizeof bytes);
    for (int i = 0; i < 16; i += lanes) {
        store(scale + i, d * to_float(widen(bytes + i) - 32));
    }
}

PHIGGML_INLINE void dequantize_q3_k(const block_q3_K & block, float * out) {
    float scale[16];
    scales_of_q3_k(block, scale);
    for (int i = 0; i < 32; i += lanes) {
        const Ints fours = ~widen(block.hmask + i) << 2;  // what a level is less by where its high bit is not set
        for (int half = 0; half < 2; ++half) {
            const Ints packed = widen(block.qs + 32 * half + i);
            for (int j = 0; j < 4; ++j) {
                const Ints level = ((packed >> (2 * j)) & 3) - ((fours >> (4 * half + j)) & 4);
                store(out + 128 * half + 32 * j + i, scale[8 * half + 2 * j + i / 16] * to_float(level));
            }
        }
    }
}

// Of the eight sub-blocks of Q4_K and Q5_K: six bits each, of which those of the last four are torn apart.
PHIGGML_INLINE void scales_and_mins(const std::uint8_t * packed, float d, float dmin, float * scale, float * min) {
    const std::uint32_t a = word_at(packed), b = word_at(packed + 4), c = word_at(packed + 8);
    const std::uint32_t last_scales = (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030);
    const std::uint32_t last_mins = ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030);
    scale_bytes(d, eight_bytes(a & 0x3f3f3f3f, last_scales), scale);
    scale_bytes(dmin, eight_bytes(b & 0x3f3f3f3f, last_mins), min);
}

PHIGGML_INLINE void dequantize_q4_k(const block_q4_K & block, float * out) {
    float scale[8], min[8];
    scales_and_mins(block.scales, from_half(block.data.data.d), from_half(block.data.data.dmin), scale, min);
    for (int j = 0; j < 8; j += 2) {
        for (int i = 0; i < 32; i += lanes) {
            const Ints packed = widen(block.qs + 16 * j + i);
            store(out + 32 * j + i, scale[j] * to_float(packed & 15) - min[j]);
            store(out + 32 * j + 32 + i, scale[j + 1] * to_float(packed >> 4) - min[j + 1]);
        }
    }
}

PHIGGML_INLINE void dequantize_q5_k(const block_q5_K & block, float * out) {
    float scale[8], min[8];
    scales_and_mins(block.scales, from_half(block.data.data.d), from_half(block.data.data.dmin), scale, min);
    for (int i = 0; i < 32; i += lanes) {
        const Ints sixteens = widen(block.qh + i) << 4;
        for (int j = 0; j < 8; j += 2) {
            const Ints packed = widen(block.qs + 16 * j + i);
            const Ints low = (packed & 15) | ((sixteens >> j) & 16);
            const Ints high = (packed >> 4) | ((sixteens >> (j + 1)) & 16);
            store(out + 32 * j + i, scale[j] * to_float(low) - min[j]);
            store(out + 32 * j + 32 + i, scale[j + 1] * to_float(high) - min[j + 1]);
        }
    }
}

PHIGGML_INLINE void dequantize_q6_k(const block_q6_K & block, float * out) {
    const float d = from_half(block.d);
    float scale[16];
    for (int i = 0; i < 16; i += lanes) {
        store(scale + i, d * to_float(widen(block.scales + i)));
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 32; i += lanes) {
            const Ints a = widen(block.ql + 64 * half + i), b = widen(block.ql + 64 * half + 32 + i);
            const Ints high = widen(block.qh + 32 * half + i);
            const float * of_these = scale + 8 * half + i / 16;
            float * to = out + 128 * half + i;
            store(to, of_these[0] * to_float(((a & 15) | ((high << 4) & 48)) - 32));
            store(to + 32, of_these[2] * to_float(((b & 15) | ((high << 2) & 48)) - 32));
            store(to + 64, of_these[4] * to_float(((a >> 4) | (high & 48)) - 32));
            store(to + 96, of_these[6] * to_float(((b >> 4) | ((high >> 2) & 48)) - 32));
        }
    }
}

}  // namespace

void add_dequantize_k(Table & table) {
    table.types[GGML_TYPE_Q2_K].dequantize = dequantize_blocks<block_q2_K, QK_K, dequantize_q2_k>;
    table.types[GGML_TYPE_Q3_K].dequantize = dequantize_blocks<block_q3_K, QK_K, dequantize_q3_k>;
    table.types[GGML_TYPE_Q4_K].dequantize = dequantize_blocks<block_q4_K, QK_K, dequantize_q4_k>;
    table.types[GGML_TYPE_Q5_K].dequantize = dequantize_blocks<block_q5_K, QK_K, dequantize_q5_k>;
    table.types[GGML_TYPE_Q6_K].dequantize = dequantize_blocks<block_q6_K, QK_K, dequantize_q6_k>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
