// A batch of IQ2 sub-blocks, one in each lane: its numbers and importances, its signs, and the sums that a choice of
// levels has. The levels are 1, 3 and 5 times a sub-block's scale; a group of 8 numbers has a code, 2 bits a level.
#pragma once

#include "kernels/blocks.h"
#include "kernels/iq2_lattice.h"
#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA::iq2 {

constexpr int max_numbers = 32;                 // in a sub-block
constexpr int max_groups = 4;                   // of 8 numbers
constexpr int max_candidates = 19;              // for a sub-block's scale
constexpr float far_from_scale = 65536.0F;      // beyond it ggml's rounding is none, and the work is left to ggml
constexpr float nearly_half = 0.5F - 0x1p-16F;  // as close to the middle between two levels as the lists allow

// How the three types differ.
template <ggml_type id, int numbers_, int n_candidates_, bool even_signs_>
struct Iq2Type {
    static constexpr ggml_type type = id;
    static constexpr int numbers = numbers_;
    static constexpr int groups = numbers / 8;
    static constexpr int sub_blocks = QK_K / numbers;
    static constexpr int n_candidates = n_candidates_;
    static constexpr bool even_signs = even_signs_;  // of 8 signs the last is the parity of the others
};

using Xxs = Iq2Type<GGML_TYPE_IQ2_XXS, 32, 13, true>;
using Xs = Iq2Type<GGML_TYPE_IQ2_XS, 16, 19, true>;
using S = Iq2Type<GGML_TYPE_IQ2_S, 16, 19, false>;

// [i][lane]; the numbers without their signs, save one that is negative where the signs must be even.
struct Batch {
    alignas(64) float x[max_numbers][lanes];
    alignas(64) float weight[max_numbers][lanes];
    alignas(64) float root[max_numbers][lanes];  // of the weight
    Ints signs[max_groups];
    Floats max;      // of x; 1 where not alive
    Floats largest;  // of x without sign
    Ints alive;      // not all zero
    Ints odd;        // to be done by ggml
};

// At one scale: the code nearest to each group, and the code on the lattice that is taken for it.
struct Codes {
    alignas(64) std::int32_t wanted[max_groups][lanes];
    alignas(64) std::int32_t found[max_groups][lanes];
    Ints unsure[max_groups];  // a number lies too close to the middle between two levels for the lists
};

struct Sums {
    Floats qx;
    Floats q2;
};

PHIGGML_INLINE Floats levels_of(Ints code, int i) {
    Floats levels;
    for (int lane = 0; lane < lanes; ++lane) {
        levels[lane] = static_cast<float>(2 * (lane % 4) + 1);
    }
    return pick(levels, code >> 2 * i);
}

template <class Type>
PHIGGML_INLINE Sums sums_of(const Batch & batch, const Ints (&codes)[Type::groups]) {
    Sums sums = {all(0.0F), all(0.0F)};
    for (int i = 0; i < Type::numbers; ++i) {
        const Floats w = load(batch.weight[i]);
        const Floats q = levels_of(codes[i / 8], i % 8);
        sums.qx += w * load(batch.x[i]) * q;
        sums.q2 += w * q * q;
    }
    return sums;
}

// The codes nearest to inverse_scale * x.
template <class Type>
PHIGGML_INLINE void round_to_codes(const Batch & batch, Floats inverse_scale, Codes & codes) {
    for (int k = 0; k < Type::groups; ++k) {
        Floats code = all(0.0F), farthest = all(0.0F);
        for (int i = 7; i >= 0; --i) {
            const Floats v = 0.5F * (inverse_scale * load(batch.x[8 * k + i]) - 1.0F);
            const Floats clamped = least(greatest(v, all(0.0F)), all(2.0F));
            const Floats level = nearest_small(clamped);
            farthest = greatest(magnitude(clamped - level), farthest);
            code = code * 4.0F + level;
        }
        store(codes.wanted[k], to_int(code));
        codes.unsure[k] = farthest > nearly_half;
    }
}

// Takes the signs off 8 numbers. Where they must be even and are not, the number that matters least keeps a wrong one.
template <class Type>
PHIGGML_INLINE Ints take_signs(Floats (&x)[8], const Floats (&weight)[8]) {
    Ints signs = all(0), parity = all(0), smallest = all(0);
    Floats least_matter = all(0.0F);
    for (int i = 0; i < 8; ++i) {
        const Ints negative = ~(x[i] >= 0.0F);
        const Floats matter = weight[i] * x[i] * x[i];
        const Ints less = i == 0 ? all(-1) : matter < least_matter;
        least_matter = select(less, matter, least_matter);
        smallest = select(less, all(1 << i), smallest);
        signs |= negative & (1 << i);
        parity ^= negative;
        x[i] = select(negative, -x[i], x[i]);
    }
    if (!Type::even_signs) {
        return signs;
    }
    const Ints flipped = parity & smallest;
    for (int i = 0; i < 8; ++i) {
        x[i] = select((flipped & (1 << i)) != 0, -x[i], x[i]);
    }
    return (signs ^ flipped) & 127;
}

// By how much each number matters: `importance` is null for IQ2_S without an imatrix.
template <class Type>
PHIGGML_INLINE Floats weight_of(Floats x, Floats sigma2, const float * importance, Ints offsets) {
    if (importance == nullptr) {
        return 0.25F * sigma2 + x * x;
    }
    return gather(importance, offsets) * square_root(sigma2 + x * x);
}

// Reads the sub-blocks that begin at x + at[lane], with their importances at imatrix + column[lane].
template <class Type>
PHIGGML_INLINE void read_batch(const float * x, Ints at, const float * imatrix, Ints column, Floats sigma2,
                               Batch & batch) {
    for (int k = 0; k < Type::groups; ++k) {
        Floats numbers[8], weights[8];
        for (int i = 0; i < 8; ++i) {
            const int n = 8 * k + i;
            numbers[i] = gather(x + n, at);
            weights[i] = weight_of<Type>(numbers[i], sigma2, imatrix == nullptr ? nullptr : imatrix + n, column);
            store(batch.weight[n], weights[i]);
            store(batch.root[n], square_root(weights[i]));
        }
        batch.signs[k] = take_signs<Type>(numbers, weights);
        for (int i = 0; i < 8; ++i) {
            store(batch.x[8 * k + i], numbers[i]);
        }
    }
    batch.max = load(batch.x[0]);
    batch.largest = magnitude(batch.max);
    for (int i = 1; i < Type::numbers; ++i) {
        batch.max = greatest(batch.max, load(batch.x[i]));
        batch.largest = greatest(batch.largest, magnitude(load(batch.x[i])));
    }
    constexpr float too_small = Type::type == GGML_TYPE_IQ2_S ? 1e-8F : 1e-15F;
    batch.alive = ~(batch.max < too_small);
    batch.max = select(batch.alive, batch.max, all(1.0F));
    batch.odd = batch.alive & ~(batch.largest < batch.max * far_from_scale);
}

// Leaves the lanes to ggml whose scale is out of all proportion to their numbers.
PHIGGML_INLINE void check_scale(Batch & batch, Floats scale, Ints mask) {
    batch.odd |= mask & ~((batch.largest < scale * far_from_scale) & (scale < batch.max * far_from_scale));
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq2
