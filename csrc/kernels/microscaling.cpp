// MXFP4 and NVFP4: numbers of 4 bits with a scale of 8. ggml looks for the level with the least error in the order of
// the codes, so a number in the middle goes to the lesser magnitude. All the middles have few bits and are exact, and
// so are the differences that decide (the two levels next to a number are within a factor of two of it), so comparing
// the number with the middles finds the same code.
#include "kernels/blockwise.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace {

constexpr int n_middles = 7;

// Between the magnitudes 0, 1, 2, 3, 4, 6, 8 and 12 of the codes, at the scale of one block in each lane.
struct Middles {
    float of[n_middles][lanes];
};

PHIGGML_INLINE void store_middles(Floats scale, Middles & middles) {
    constexpr float unscaled[n_middles] = {0.5F, 1.5F, 2.5F, 3.5F, 5.0F, 7.0F, 10.0F};
    for (int i = 0; i < n_middles; ++i) {
        store(middles.of[i], scale * unscaled[i]);
    }
}

// count + 1 where the mask is set.
PHIGGML_INLINE Ints count_where(Ints mask, Ints count) {
#if defined(__AVX512F__)
    return mask ? count + 1 : count;
#else
    return count - mask;
#endif
}

// How many middles the magnitude is above, and 8 for a negative number if there are any.
PHIGGML_INLINE Ints codes(Floats numbers, const Middles & middles, int lane) {
    const Floats size = magnitude(numbers);
    Ints code = select(size > middles.of[0][lane], ((bits(numbers) >> 28) & 8) + 1, Ints{});
    for (int i = 1; i < n_middles; ++i) {
        code = count_where(size > middles.of[i][lane], code);
    }
    return code;
}

// The bits of positive numbers with an exponent that goes on below 1 where the number is denormal: it is an integer
// times 2^-149.
PHIGGML_INLINE Ints normalized_bits(Floats v) {
    return select(bits(v) < 0x00800000, bits(to_float(bits(v))) - (149 << 23), bits(v));
}

// A block's exponent is floor(log2) of the greatest magnitude, less 2; ggml's cast to a byte wraps it below zero, and
// the scale is then so great that all levels are 0. A number so close below a power of two that the logarithm's
// rounding may reach it is left to ggml.
void quantize_mxfp4(const float * x, std::uint8_t * out) {
    constexpr int block = QK_MXFP4;
    const Floats greatest_size = pick_of_blocks<GreatestMagnitude, block>(x);
    const Ints size_bits = normalized_bits(greatest_size), zero = greatest_size == 0.0F;
    const Ints unclear = (size_bits & 0x007ffc00) == 0x007ffc00;
    const Ints exponent = select(zero, Ints{}, ((size_bits >> 23) - 2) & 0xff);
    const Ints least_scale = select(exponent == 0, all(0x00200000), all(0x00400000));
    const Floats scale = from_bits(select(exponent < 2, least_scale, (exponent - 1) << 23));
    Middles middles;
    store_middles(select(zero, all(1.0F), scale), middles);  // zeros are level 0 at any scale; denormals would be slow
    std::uint8_t exponents[lanes];
    store_bytes(exponents, exponent);
    for (int lane = 0; lane < lanes; ++lane) {
        const float * numbers = x + lane * block;
        std::uint8_t * levels = out + lane * static_cast<int>(sizeof(block_mxfp4));
        levels[0] = exponents[lane];
        for (int i = 0; i < block / 2; i += lanes) {
            const Ints low = codes(load(numbers + i), middles, lane);
            const Ints high = codes(load(numbers + block / 2 + i), middles, lane);
            store_bytes(levels + offsetof(block_mxfp4, qs) + i, low | (high << 4));
        }
    }
    if (any(unclear)) {
        for (int lane = 0; lane < lanes; ++lane) {
            if (unclear[lane] != 0) {
                quantize_by_ggml(GGML_TYPE_MXFP4, x + lane * block, out + lane * static_cast<int>(sizeof(block_mxfp4)),
                                 1, block, nullptr);
            }
        }
    }
}

// As an unsigned number of 4 bits for the exponent (less 7) and 3 for the fraction, halves upwards. The greatest
// exponent has one number for all: 448.
PHIGGML_INLINE Ints to_ue4m3(Floats v) {
    const Ints v_bits = bits(v);
    const Ints exponent = (v_bits >> 23) - (127 - 7);
    const Ints rounded = (exponent << 3) + ((v_bits >> 20) & 7) + ((v_bits >> 19) & 1);
    const Ints below_normal = least(to_int(least(v, all(448.0F)) * 512.0F + 0.5F), all(7));
    return select(exponent <= 0, below_normal, select(rounded >= 0x78, all(0x7e), rounded));
}

// Half of what such a number stands for.
PHIGGML_INLINE Floats half_of_ue4m3(Ints v) {
    const Ints exponent = v >> 3;
    const Floats below_normal = to_float(v) * (0.5F / 512.0F);
    return select(exponent == 0, below_normal, from_bits(((exponent + (127 - 8)) << 23) | ((v & 7) << 20)));
}

// The lanes are sub-blocks of 16, four to a block.
void quantize_nvfp4(const float * x, std::uint8_t * out) {
    constexpr int block = QK_NVFP4_SUB, n_subs = QK_NVFP4 / QK_NVFP4_SUB;
    const Ints scale_code = to_ue4m3(pick_of_blocks<GreatestMagnitude, block>(x) / 6.0F);
    Middles middles;
    store_middles(select(scale_code == 0, all(__builtin_inff()), half_of_ue4m3(scale_code)), middles);
    std::uint8_t scale_codes[lanes];
    store_bytes(scale_codes, scale_code);
    for (int lane = 0; lane < lanes; lane += n_subs, out += sizeof(block_nvfp4)) {
        std::memcpy(out, scale_codes + lane, n_subs);
        for (int sub = lane; sub < lane + n_subs; sub += 2, x += 2 * block) {
            std::uint8_t * levels = out + n_subs + (sub - lane) * (block / 2);
#if defined(__AVX512F__)
            const Ints a = codes(load(x), middles, sub), b = codes(load(x + block), middles, sub + 1);
            const Ints low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
            const Ints high =
                __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
            store_bytes(levels, low | (high << 4));
#else
            for (int i = 0; i < 2; ++i) {
                const Ints low = codes(load(x + i * block), middles, sub + i);
                const Ints high = codes(load(x + i * block + lanes), middles, sub + i);
                store_bytes(levels + i * lanes, low | (high << 4));
            }
#endif
        }
    }
}

}  // namespace

void add_microscaling(Table & table) {
    constexpr int nvfp4_blocks = lanes * QK_NVFP4_SUB / QK_NVFP4;
    enter(table, GGML_TYPE_MXFP4, quantize_groups<QK_MXFP4, sizeof(block_mxfp4), lanes, quantize_mxfp4>);
    enter(table, GGML_TYPE_NVFP4, quantize_groups<QK_NVFP4, sizeof(block_nvfp4), nvfp4_blocks, quantize_nvfp4>);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
