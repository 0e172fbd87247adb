// What IQ1_S and IQ1_M share: sub-blocks, one in each lane, whose numbers get the levels 0, 1, 2 by two splits of their
// sorted order, and then the levels of the nearest lattice points.
#pragma once

#include <cfloat>

#include "kernels/iq1_columns.h"
#include "kernels/iq1_lattice.h"
#include "kernels/iq1_sort.h"

namespace phiggml::kernels::PHIGGML_ISA {

constexpr float iq1_shift = 0.125F;  // ggml's IQ1S_DELTA and IQ1M_DELTA

// The best splits so far: `choice` says which, and is -1 before any.
struct BestSplits {
    Floats score = all(-FLT_MAX);
    Floats scale = {};
    Ints choice = all(-1);
};

// Whether in any lane one of n splits passes the test that ggml makes, less what it makes of squares <= 0.
template <int n>
PHIGGML_INLINE bool any_may_be_better(const Floats (&products)[n], const Floats (&squares)[n],
                                      const BestSplits & best) {
#if defined(__AVX512F__)
    unsigned better = 0;
    for (int i = 0; i < n; ++i) {
        better |= _mm512_cmp_ps_mask(products[i] * products[i], best.score * squares[i], _CMP_GT_OQ);
    }
    return better != 0;
#else
    Ints better = {};
    for (int i = 0; i < n; ++i) {
        better |= products[i] * products[i] > best.score * squares[i];
    }
    return any(better);
#endif
}

PHIGGML_INLINE void consider(Floats products, Floats squares, int choice, BestSplits & best) {
    const Ints better = (products * products > best.score * squares) & (squares > 0.0F);
    const Floats scale = products / squares;
    best.score = select(better, scale * products, best.score);
    best.scale = select(better, scale, best.scale);
    best.choice = select(better, all(choice), best.choice);
}

// The best of a few splits by score, without choices and divisions: the numerator and denominator of the score.
struct RoughBest {
    Floats numerator = {};
    Floats denominator = all(1.0F);
};

PHIGGML_INLINE void consider(Floats products, Floats squares, RoughBest & best) {
    const Floats numerator = products * products;
    const Ints better = numerator * best.denominator > best.numerator * squares;
    best.numerator = select(better, numerator, best.numerator);
    best.denominator = select(better, squares, best.denominator);
}

// Where to begin a search of all splits, after one of a few. Most splits then fail the first test, and the end is the
// same: what wins in the end beats this start by more than rounding can hide, and from there on the two searches agree.
// Where products may leave the range in which rounding errors are that small, the search begins from nothing.
PHIGGML_INLINE BestSplits begin_after(const RoughBest & few, Floats total_weight, Floats greatest_number) {
    const Floats score = few.numerator / few.denominator;
    const Ints regular = (score > 1e-30F) & (total_weight < 1e25F) & (score * total_weight > 1e-32F) &
                         (greatest_number * total_weight < 1e17F);
    BestSplits begin;
    begin.score = select(regular, score * (1 - 0x1p-15F), begin.score);
    return begin;
}

template <int size>
struct SubBlocks {
    static constexpr int n_words = size / 16;  // of 16 levels, two bits each
    static constexpr int n_groups = size / 8;

    Floats x[size], weights[size];
    Floats greatest_number;
    Floats scale;
    Floats shifts[2];  // of the levels' values -1, 0, 1, in each half
    Ints words[n_words];
    Ints empty;
    Ints off_lattice;
};

template <int size>
PHIGGML_INLINE void load_numbers(const float * x, const float * weights, SubBlocks<size> & blocks) {
    transpose_by_four<size>(x, size, blocks.x);
    transpose_by_four<size>(weights, size, blocks.weights);
    blocks.greatest_number = magnitude(blocks.x[0]);
    for (int i = 1; i < size; ++i) {
        blocks.greatest_number = greatest(blocks.greatest_number, magnitude(blocks.x[i]));
    }
}

// Numbers sorted before `first` have level 0, from `second` on level 2. A negative scale turns levels and values round.
template <int size>
PHIGGML_INLINE void assign_levels(const Ints * places, Ints first, Ints second, SubBlocks<size> & blocks) {
    for (Ints & word : blocks.words) {
        word = Ints{};
    }
    for (int i = 0; i < size; ++i) {
        const Ints level = -((first <= i) + (second <= i));
        const Ints bits = level << (2 * (places[i] & 15));
        for (int word = 0; word < SubBlocks<size>::n_words; ++word) {
            blocks.words[word] |= select((places[i] >> 4) == word, bits, Ints{});
        }
    }
    const Ints negative = blocks.scale < 0.0F;
    for (Ints & word : blocks.words) {
        word ^= negative & ~(word << 1) & static_cast<std::int32_t>(0xaaaaaaaa);
    }
    blocks.scale = select(negative, -blocks.scale, blocks.scale);
    for (Floats & shift : blocks.shifts) {
        shift = select(negative, -shift, shift);
    }
}

// Moves every group to the lattice; writes its index. The first n_lanes lanes are in use; x and weights lie in rows.
template <int size>
PHIGGML_INLINE void settle_on_lattice(const Iq1Lattice & lattice, const float * x, const float * weights, int n_lanes,
                                      SubBlocks<size> & blocks, std::uint16_t (*indices)[size / 8]) {
    constexpr int n_groups = SubBlocks<size>::n_groups;
    std::uint16_t codes[n_groups / 2][lanes][2];
    float scale[lanes], shifts[2][lanes];
    std::int32_t off[lanes] = {}, empty[lanes];
    std::memcpy(codes, blocks.words, sizeof codes);
    store(scale, blocks.scale);
    store(shifts[0], blocks.shifts[0]);
    store(shifts[1], blocks.shifts[1]);
    store(empty, blocks.empty);
    for (int lane = 0; lane < n_lanes; ++lane) {
        for (int group = 0; group < n_groups; ++group) {
            std::uint16_t & code = codes[group / 2][lane][group % 2];
            code = empty[lane] ? std::uint16_t{Iq1Lattice::first_code} : code;
            if (lattice.places[code] < 0) {
                const int at = lane * size + group * 8;
                code = static_cast<std::uint16_t>(nearest_iq1_point(lattice, code, x + at, weights + at, scale[lane],
                                                                    shifts[2 * group / n_groups][lane]));
                off[lane] = -1;
            }
            indices[lane][group] = static_cast<std::uint16_t>(lattice.places[code]);
        }
    }
    std::memcpy(blocks.words, codes, sizeof codes);
    blocks.off_lattice = load(off);
}

// The best scale for the levels on the lattice, where a group had to be moved there.
template <int size>
PHIGGML_INLINE void fit_scale(SubBlocks<size> & blocks) {
    Floats products = {}, squares = {};
    for (int i = 0; i < size; ++i) {
        const Ints level = (blocks.words[i / 16] >> (2 * (i % 16))) & 3;
        const Floats value = to_float(level) + (blocks.shifts[2 * i / size] - 1.0F);
        const Floats weighted = blocks.weights[i] * value;
        products += weighted * blocks.x[i];
        squares += weighted * value;
    }
    const Ints fits = blocks.off_lattice & (products > 0.0F) & (squares > 0.0F);
    blocks.scale = select(fits, products / squares, blocks.scale);
    blocks.scale = select(blocks.empty, Floats{}, blocks.scale);
}

// Importances times the size of numbers, of one super-block.
PHIGGML_INLINE void weigh(const float * x, const float * imatrix, float sigma2, float * weights) {
    for (int i = 0; i < 256; i += lanes) {
        const Floats number = load(x + i);
        store(weights + i, load(imatrix + i) * square_root(sigma2 + number * number));
    }
}

// The doubled mean of the squares of each of up to `lanes` super-blocks.
PHIGGML_INLINE void mean_squares(const float * x, int n_blocks, float * sigma2) {
    if (n_blocks == lanes) {
        const Floats sums = sum_in_order(x, 256, 256, [](Floats v) { return v * v; });
        store(sigma2, 2.0F * sums / 256.0F);
        return;
    }
    for (int block = 0; block < n_blocks; ++block) {
        float sum = 0;
        for (int i = 0; i < 256; ++i) {
            sum += x[256 * block + i] * x[256 * block + i];
        }
        sigma2[block] = 2 * sum / 256;
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA
