// Q4_0, Q4_1, Q5_0 and Q5_1 with importances: weights of the numbers that depend on the whole row, and a search for
// each block, one block in each lane.
#include "kernels/blocks.h"
#include "kernels/families.h"
#include "kernels/k_offset_blocks.h"
#include "kernels/k_offset_scales.h"
#include "kernels/k_offset_search.h"
#include "kernels/signed_search.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int block = 32;

// What the search for a step and a minimum tries.
template <int n_bits>
struct MinimumPlan {
    static constexpr int n = block, n_max = (1 << n_bits) - 1, n_trials = 37;
    static constexpr float first = -0.9F, interval = 0.05F;
    static constexpr bool absolute = false;
    static constexpr bool cut = true, skips = true;
};

// Mean squares of up to `lanes` rows, one row in each lane.
PHIGGML_INLINE Floats mean_squares(const float * x, std::int64_t n_rows, std::int64_t n_per_row) {
    const float * rows[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
        rows[lane] = x + (lane < n_rows ? lane : n_rows - 1) * n_per_row;
    }
    Floats sum{};
    for (std::int64_t first = 0; first < n_per_row; first += lanes) {
        Floats numbers[lanes];
        transpose_rows(rows, lanes, numbers);
        for (int i = 0; i < lanes; ++i) {
            sum += numbers[i] * numbers[i];
        }
        for (int lane = 0; lane < lanes; ++lane) {
            rows[lane] += lanes;
        }
    }
    return sum / static_cast<float>(n_per_row);
}

// Up to `lanes` rows.
struct Rows {
    const float * x;
    const float * imatrix;
    std::int64_t n_blocks, n_columns;  // in blocks
    float mean_square[lanes];

    // Numbers and weights of the blocks from `first` on; spare lanes repeat the last block.
    PHIGGML_INLINE void load_blocks(std::int64_t first, Floats * numbers, Floats * w) const {
        const float *rows[lanes], *importances[lanes];
        Floats variance;
        for (int lane = 0; lane < lanes; ++lane) {
            const std::int64_t at = first + lane < n_blocks ? first + lane : n_blocks - 1;
            rows[lane] = x + at * block;
            importances[lane] = imatrix + at % n_columns * block;
            variance[lane] = mean_square[at / n_columns];
        }
        transpose_rows(rows, block, numbers);
        transpose_rows(importances, block, w);
        for (int i = 0; i < block; ++i) {
            w[i] *= square_root(variance + numbers[i] * numbers[i]);
        }
    }
};

// Blocks as they are stored, one in each lane: step and minimum, then words with the fifth bits and with the others.
template <int n_bits, bool has_minimum>
struct Packed {
    static constexpr int head_bytes = has_minimum ? 4 : 2, n_words = n_bits == 5 ? 5 : 4;
    static constexpr int bytes = head_bytes + 4 * n_words;

    Ints head, words[n_words];

    PHIGGML_INLINE void pack_levels(const Ints * levels) {
        for (int i = 0; i < n_words; ++i) {
            words[i] = Ints{};
        }
        for (int i = 0; i < block / 2; ++i) {
            const Ints both = (levels[i] & 15) | (levels[i + block / 2] & 15) << 4;
            words[n_words - 4 + i / 4] |= both << 8 * (i % 4);
        }
        if constexpr (n_bits == 5) {
            for (int i = 0; i < block; ++i) {
                words[0] |= levels[i] >> 4 << i;
            }
        }
    }

    PHIGGML_INLINE void store(std::int64_t n, std::uint8_t * out) const {
        for (std::int64_t lane = 0; lane < n; ++lane) {
            std::uint8_t * to = out + lane * bytes;
            const std::int32_t first = head[lane];
            std::memcpy(to, &first, head_bytes);
            for (int i = 0; i < n_words; ++i) {
                const std::int32_t word = words[i][lane];
                std::memcpy(to + head_bytes + 4 * i, &word, sizeof word);
            }
        }
    }
};

template <int n_bits>
PHIGGML_INLINE void pack(const SignedFit & fit, const Floats * x, Packed<n_bits, false> & packed) {
    constexpr int n_max = 1 << (n_bits - 1);
    Ints levels[block];
    const SignedLevels<n_max> rounding;
    for (int i = 0; i < block; ++i) {
        const Floats level = rounding.template round<last_trial>(fit.inverse * x[i]);
        levels[i] = select(fit.peak.none, all(0), to_int(level) + n_max);
    }
    packed.head = to_halves(fit.step).bits;
    packed.pack_levels(levels);
}

template <int n_bits>
PHIGGML_INLINE void pack(const Fit & fit, const Floats * x, Packed<n_bits, true> & packed) {
    Ints levels[block];
    for (int i = 0; i < block; ++i) {
        levels[i] = level_of_fit<MinimumPlan<n_bits>>(fit, x[i]);
    }
    packed.head = to_halves(select(fit.flat, all(0.0F), fit.step)).bits | to_halves(fit.minimum).bits << 16;
    packed.pack_levels(levels);
}

template <int n_bits, bool has_minimum>
PHIGGML_INLINE void quantize_rows(const Rows & rows, std::uint8_t * out) {
    using Blocks = Packed<n_bits, has_minimum>;
    constexpr int n_groups = has_minimum ? ways : 1;
    for (std::int64_t first = 0; first < rows.n_blocks; first += n_groups * lanes) {
        Floats x[n_groups * block], w[n_groups * block];
        for (int group = 0; group < n_groups; ++group) {
            rows.load_blocks(first + group * lanes, x + group * block, w + group * block);
        }
        Blocks packed[n_groups];
        if constexpr (has_minimum) {
            Fit fits[ways];
            Search<MinimumPlan<n_bits>>(x, w, fits).run();
            for (int group = 0; group < ways; ++group) {
                pack(fits[group], x + group * block, packed[group]);
            }
        } else {
            pack(search_signed<block, 1 << (n_bits - 1)>(x, w), x, packed[0]);
        }
        for (int group = 0; group < n_groups; ++group) {
            const std::int64_t at = first + group * lanes, left = rows.n_blocks - at;
            packed[group].store(left < lanes ? left : lanes, out + at * Blocks::bytes);
        }
    }
}

template <int n_bits, bool has_minimum>
void quantize(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float * imatrix) {
    Rows rows;
    rows.imatrix = imatrix;
    rows.n_columns = n_per_row / block;
    for (std::int64_t first = 0; first < n_rows; first += lanes) {
        const std::int64_t n = n_rows - first < lanes ? n_rows - first : lanes;
        rows.x = x + first * n_per_row;
        rows.n_blocks = n * rows.n_columns;
        store(rows.mean_square, mean_squares(rows.x, n, n_per_row));
        quantize_rows<n_bits, has_minimum>(rows, out + first * rows.n_columns * Packed<n_bits, has_minimum>::bytes);
    }
}

}  // namespace

void add_weighted(Table & table) {
    table.types[GGML_TYPE_Q4_0].quantize_weighted = quantize<4, false>;
    table.types[GGML_TYPE_Q4_1].quantize_weighted = quantize<4, true>;
    table.types[GGML_TYPE_Q5_0].quantize_weighted = quantize<5, false>;
    table.types[GGML_TYPE_Q5_1].quantize_weighted = quantize<5, true>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
