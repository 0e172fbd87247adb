// Q4_0, Q4_1, Q5_0 and Q5_1 without importances, Q8_0, Q1_0 and Q2_0.
#include "kernels/blockwise.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace {

constexpr int block = 32;  // of Q4_0 to Q8_0

// The number of greatest magnitude in each block, with its sign: the first one where several are as great.
PHIGGML_INLINE Floats signed_greatest(const float * x) {
    const Floats low = pick_of_blocks<Least, block>(x), high = pick_of_blocks<Greatest, block>(x);
    const Ints tied = (low == -high) & (high != 0.0F);
    Floats found = select(high > -low, high, low);
    if (any(tied)) {
        for (int lane = 0; lane < lanes; ++lane) {
            const float * number = x + lane * block;
            if (tied[lane] != 0) {
                while (__builtin_fabsf(*number) != high[lane]) {
                    ++number;
                }
                found[lane] = *number;
            }
        }
    }
    return select(found == 0.0F, Floats{}, found);
}

// The least number of each block; where that is zero, with the sign of the block's first zero.
PHIGGML_INLINE Floats signed_least(const float * x) {
    Floats found = pick_of_blocks<Least, block>(x);
    const Ints zero = found == 0.0F;
    if (any(zero)) {
        for (int lane = 0; lane < lanes; ++lane) {
            const float * number = x + lane * block;
            if (zero[lane] != 0) {
                while (*number != 0.0F) {
                    ++number;
                }
                found[lane] = *number;
            }
        }
    }
    return found;
}

// A block's levels: the low four bits of the first and the second half in one byte, the fifth bits before them.
template <int n_bits, bool has_minimum>
PHIGGML_INLINE void store_levels(std::uint8_t * out, const float * x, float inverse, float minimum) {
    constexpr int high_bytes = n_bits == 5 ? 4 : 0;
    std::uint32_t high = 0;
    for (int i = 0; i < block / 2; i += lanes) {
        Ints levels[2];
        for (int half = 0; half < 2; ++half) {
            const Floats numbers = load(x + half * (block / 2) + i);
            if (has_minimum) {
                levels[half] = to_int((numbers - minimum) * inverse + 0.5F);
            } else {
                constexpr int greatest_level = (1 << n_bits) - 1;
                levels[half] = to_int(numbers * inverse + (0.5F + (1 << (n_bits - 1))));
                levels[half] = least(levels[half], all(greatest_level));
            }
            if (n_bits == 5) {
                high |= sign_bits(levels[half] << 27) << (half * (block / 2) + i);
            }
        }
        const Ints low = n_bits == 5 ? levels[0] & 15 : levels[0];
        store_bytes(out + high_bytes + i, low | (levels[1] << 4));
    }
    if (n_bits == 5) {
        std::memcpy(out, &high, high_bytes);
    }
}

// An infinite inverse stays so: its products are no integers, and a cast makes 0 of these.
template <int n_bits, bool has_minimum>
void quantize_levels(const float * x, std::uint8_t * out) {
    constexpr int half_bytes = 2, head_bytes = has_minimum ? 4 : 2;
    constexpr int n_bytes = head_bytes + block * n_bits / 8;
    Floats scale, minimum{};
    if (has_minimum) {
        minimum = signed_least(x);
        const Floats range = magnitude(pick_of_blocks<Greatest, block>(x) - minimum);  // +0 of zeros of both signs
        scale = range / static_cast<float>((1 << n_bits) - 1);
    } else {
        scale = signed_greatest(x) / static_cast<float>(-(1 << (n_bits - 1)));
    }
    float inverses[lanes], minima[lanes];
    store(inverses, select(scale == 0.0F, Floats{}, 1.0F / scale));
    store(minima, minimum);
    std::uint8_t scale_halves[half_bytes * lanes], minimum_halves[half_bytes * lanes];
    store_halves(scale_halves, scale);
    store_halves(minimum_halves, minimum);
    for (int lane = 0; lane < lanes; ++lane, x += block, out += n_bytes) {
        std::memcpy(out, scale_halves + half_bytes * lane, half_bytes);
        if (has_minimum) {
            std::memcpy(out + half_bytes, minimum_halves + half_bytes * lane, half_bytes);
        }
        store_levels<n_bits, has_minimum>(out + head_bytes, x, inverses[lane], minima[lane]);
    }
}

// To the nearest integer, halves away from zero, below 2^22: the greatest float below a half is added and the rest cut.
PHIGGML_INLINE Ints round_away(Floats v) {
    const Ints below_half = all(0x3effffff);
    return to_int(v + from_bits(below_half | (bits(v) & static_cast<std::int32_t>(0x80000000U))));
}

void quantize_q8_0(const float * x, std::uint8_t * out) {
    const Floats scale = pick_of_blocks<GreatestMagnitude, block>(x) / 127.0F;
    float inverses[lanes];
    store(inverses, finite_inverse(scale));
    std::uint8_t halves[2 * lanes];
    store_halves(halves, scale);
    for (int lane = 0; lane < lanes; ++lane, x += block, out += sizeof(block_q8_0)) {
        std::memcpy(out, halves + 2 * lane, 2);
        for (int i = 0; i < block; i += lanes) {
            store_bytes(out + 2 + i, round_away(load(x + i) * inverses[lane]));
        }
    }
}

// Bit i: number i is zero or more.
PHIGGML_INLINE std::uint32_t not_negative_bits(Floats v) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(v, Floats{}, _CMP_GE_OQ);
#else
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, Floats{}, _CMP_GE_OQ)));
#endif
}

// The mean magnitude is a sum in the order of the numbers, so each lane adds up one block.
void quantize_q1_0(const float * x, std::uint8_t * out) {
    Floats sum{};
    for (int i = 0; i < QK1_0; i += 4) {
        Floats columns[4];
        transpose_four(x + i, QK1_0, columns);
        for (const Floats & column : columns) {
            sum += magnitude(column);
        }
    }
    std::uint8_t halves[2 * lanes];
    store_halves(halves, sum / static_cast<float>(QK1_0));
    for (int lane = 0; lane < lanes; ++lane, x += QK1_0, out += sizeof(block_q1_0)) {
        std::memcpy(out, halves + 2 * lane, 2);
        for (int i = 0; i < QK1_0; i += lanes) {
            const std::uint32_t signs = not_negative_bits(load(x + i));
            std::memcpy(out + 2 + i / 8, &signs, lanes / 8);
        }
    }
}

// The low two bits of four vectors' lanes, four consecutive numbers to each byte.
PHIGGML_INLINE void store_twos(std::uint8_t * out, const Ints * v) {
#if defined(__AVX512F__)
    const __m512i ab = _mm512_packs_epi32(reinterpret_cast<__m512i>(v[0]), reinterpret_cast<__m512i>(v[1]));
    const __m512i cd = _mm512_packs_epi32(reinterpret_cast<__m512i>(v[2]), reinterpret_cast<__m512i>(v[3]));
    Ints fours = reinterpret_cast<Ints>(_mm512_packs_epi16(ab, cd));
    fours = __builtin_shufflevector(fours, fours, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#else
    const __m256i ab = _mm256_packs_epi32(reinterpret_cast<__m256i>(v[0]), reinterpret_cast<__m256i>(v[1]));
    const __m256i cd = _mm256_packs_epi32(reinterpret_cast<__m256i>(v[2]), reinterpret_cast<__m256i>(v[3]));
    Ints fours = reinterpret_cast<Ints>(_mm256_packs_epi16(ab, cd));
    fours = __builtin_shufflevector(fours, fours, 0, 4, 1, 5, 2, 6, 3, 7);
#endif
    fours |= fours >> 6;
    store_bytes(out, fours | (fours >> 12));
}

// Levels are a trit and one. Where the inverse is infinite, ggml's cast makes the least level, 0, of every number.
void quantize_q2_0(const float * x, std::uint8_t * out) {
    const Floats scale = pick_of_blocks<GreatestMagnitude, QK2_0>(x);
    const Floats inverse = finite_inverse(scale);
    float inverses[lanes], ones[lanes];
    store(inverses, inverse);
    store(ones, select((inverse == 0.0F) & (scale != 0.0F), Floats{}, all(1.0F)));
    std::uint8_t halves[2 * lanes];
    store_halves(halves, scale);
    for (int lane = 0; lane < lanes; ++lane, x += QK2_0, out += sizeof(block_q2_0)) {
        std::memcpy(out, halves + 2 * lane, 2);
        for (int i = 0; i < QK2_0; i += 4 * lanes) {
            Ints levels[4];
            for (int j = 0; j < 4; ++j) {
                levels[j] = to_int(nearest_trit(load(x + i + j * lanes) * inverses[lane]) + ones[lane]);
            }
            store_twos(out + 2 + i / 4, levels);
        }
    }
}

}  // namespace

void add_legacy(Table & table) {
    table.types[GGML_TYPE_Q4_0].quantize = quantize_groups<block, sizeof(block_q4_0), lanes, quantize_levels<4, false>>;
    table.types[GGML_TYPE_Q4_1].quantize = quantize_groups<block, sizeof(block_q4_1), lanes, quantize_levels<4, true>>;
    table.types[GGML_TYPE_Q5_0].quantize = quantize_groups<block, sizeof(block_q5_0), lanes, quantize_levels<5, false>>;
    table.types[GGML_TYPE_Q5_1].quantize = quantize_groups<block, sizeof(block_q5_1), lanes, quantize_levels<5, true>>;
    enter(table, GGML_TYPE_Q8_0, quantize_groups<block, sizeof(block_q8_0), lanes, quantize_q8_0>);
    enter(table, GGML_TYPE_Q1_0, quantize_groups<QK1_0, sizeof(block_q1_0), lanes, quantize_q1_0>);
    enter(table, GGML_TYPE_Q2_0, quantize_groups<QK2_0, sizeof(block_q2_0), lanes, quantize_q2_0>);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
