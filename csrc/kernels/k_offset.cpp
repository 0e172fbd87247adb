// Q2_K, Q4_K and Q5_K: each sub-block has a step and a minimum, which are small integers times those of the
// super-block. A batch of super-blocks is quantized at once, one in each lane.
#include "kernels/blocks.h"
#include "kernels/families.h"
#include "kernels/k_offset_blocks.h"
#include "kernels/k_offset_scales.h"
#include "kernels/k_offset_search.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// What a search tries: the inverse step puts the greatest number on n_max + first, + interval and so on.
template <int n_, int n_max_>
struct Plain {
    static constexpr int n = n_, n_max = n_max_, n_trials = n_max_ == 15 ? 21 : 16;
    static constexpr float first = n_max_ == 15 ? -1.0F : -0.5F, interval = 0.1F;
    static constexpr bool absolute = n_max_ == 3;
    static constexpr bool cut = false, skips = false;
};

template <int n_, int n_max_>
struct Weighted {
    static constexpr int n = n_, n_max = n_max_, n_trials = 37;
    static constexpr float first = -0.9F, interval = 0.05F;
    static constexpr bool absolute = false;
    static constexpr bool cut = true, skips = true;
};

// Where the levels of sub-block j go: to bytes from level_byte on, shifted, and the bits above `low_bits` elsewhere.
struct Q2K {
    static constexpr ggml_type type = GGML_TYPE_Q2_K;
    static constexpr int n = 16, n_max = 3, n_scale_max = 15, n_words = sizeof(block_q2_K) / 4;
    static constexpr int levels_at = QK_K / 16;

    static constexpr int byte(int j) { return levels_at + 32 * (j / 8) + 16 * (j % 2); }
    static constexpr int shift(int j) { return 2 * (j % 8 / 2); }

    PHIGGML_INLINE static void plain_weights(const Floats * x, Floats * w) {
        for (int i = 0; i < n; ++i) {
            w[i] = magnitude(x[i]);
        }
    }

    PHIGGML_INLINE static Floats variance(Floats sum) { return sum / static_cast<float>(QK_K); }

    // The two integers share a byte, and in ggml's order: what does not fit into 4 bits reaches the other.
    PHIGGML_INLINE static void pack_scales(Scales<16> & steps, Scales<16> & minima, Ints * words) {
        for (int j = 0; j < 16; ++j) {
            const Ints both = steps.level[j] | (minima.level[j] << 4 & 0xff);
            words[j / 4] |= both << 8 * (j % 4);
            steps.level[j] = both & 15;
            minima.level[j] = both >> 4;
        }
        words[n_words - 1] = steps.step.bits | minima.step.bits << 16;
    }
};

// What Q4_K and Q5_K share.
struct SixBitScales {
    static constexpr int n = 32, n_scale_max = 63;

    PHIGGML_INLINE static void plain_weights(const Floats * x, Floats * w) {
        Floats sum{};
        for (int i = 0; i < n; ++i) {
            sum += x[i] * x[i];
        }
        const Floats mean = square_root(sum / static_cast<float>(n));
        for (int i = 0; i < n; ++i) {
            w[i] = mean + magnitude(x[i]);
        }
    }

    PHIGGML_INLINE static Floats variance(Floats sum) { return 2.0F * sum / static_cast<float>(QK_K); }

    PHIGGML_INLINE static void pack_scales(Scales<8> & steps, Scales<8> & minima, Ints * words) {
        words[0] = steps.step.bits | minima.step.bits << 16;
        for (int j = 0; j < 8; ++j) {
            steps.level[j] = least(steps.level[j], all(63));
            minima.level[j] = least(minima.level[j], all(63));
        }
        for (int j = 0; j < 4; ++j) {
            const Ints step = steps.level[j + 4], minimum = minima.level[j + 4];
            words[1] |= (steps.level[j] | (step >> 4 << 6)) << 8 * j;
            words[2] |= (minima.level[j] | (minimum >> 4 << 6)) << 8 * j;
            words[3] |= ((step & 15) | (minimum & 15) << 4) << 8 * j;
        }
    }
};

struct Q4K : SixBitScales {
    static constexpr ggml_type type = GGML_TYPE_Q4_K;
    static constexpr int n_max = 15, n_words = sizeof(block_q4_K) / 4, levels_at = 16;

    static constexpr int byte(int j) { return levels_at + 32 * (j / 2); }
    static constexpr int shift(int j) { return 4 * (j % 2); }
};

struct Q5K : SixBitScales {
    static constexpr ggml_type type = GGML_TYPE_Q5_K;
    static constexpr int n_max = 31, n_words = sizeof(block_q5_K) / 4, high_at = 16, levels_at = 48;

    static constexpr int byte(int j) { return levels_at + 32 * (j / 2); }
    static constexpr int shift(int j) { return 4 * (j % 2); }
};

template <class Format>
struct Batch {
    static constexpr int n_parts = QK_K / Format::n;  // sub-blocks in a super-block

    Floats x[QK_K];
    Fit fits[n_parts];
    Scales<n_parts> steps, minima;
    Ints words[Format::n_words];
};

template <class Format>
PHIGGML_INLINE void take_fits(Batch<Format> & batch) {
    for (int j = 0; j < batch.n_parts; ++j) {
        const Fit & fit = batch.fits[j];
        batch.steps.value[j] = select(fit.flat, all(0.0F), fit.step);
        batch.minima.value[j] = -fit.minimum;
    }
}

template <class Format>
PHIGGML_INLINE void pack_levels(const Ints * levels, int j, Ints * words) {
    for (int i = 0; i < Format::n; i += 4) {
        Ints word{};
        for (int k = 0; k < 4; ++k) {
            const Ints level = levels[i + k];
            word |= (Format::n_max == 31 ? level & 15 : level) << 8 * k;
        }
        words[(Format::byte(j) + i) / 4] |= word << Format::shift(j);
        if constexpr (Format::n_max == 31) {
            Ints high{};
            for (int k = 0; k < 4; ++k) {
                high |= levels[i + k] >> 4 << 8 * k;
            }
            words[(Format::high_at + i) / 4] |= high << j;
        }
    }
}

// Levels nearest to (x + minimum) / step, by a multiplication, which is wrong by less than the margin. False if a
// number is so near to the middle of two levels that the division must tell.
template <class Format>
PHIGGML_INLINE bool round_quickly(const Floats * x, const Fit & fit, Floats step, Floats minimum, Ints * levels) {
    const Floats inverse = select(step > 0.0F, 1.0F / step, all(0.0F));
    if (!all_within(-4e6F, (fit.low + minimum) * inverse, (fit.high + minimum) * inverse, 4e6F)) {
        return false;
    }
    Floats farthest{};
    for (int i = 0; i < Format::n; ++i) {
        const Floats v = least(greatest((x[i] + minimum) * inverse, all(0.0F)), all(static_cast<float>(Format::n_max)));
        const Floats rounded = v + rounding_shift;
        levels[i] = bits(rounded) & Format::n_max;
        farthest = greatest(magnitude(v - (rounded - rounding_shift)), farthest);
    }
    return !any(farthest > 0.49998F);
}

// Levels for the rounded steps and minima. Where a rounded step is zero, the levels of the search stay.
template <class Format, class Plan>
void finish(Batch<Format> & batch) {
    std::memset(batch.words, 0, sizeof batch.words);
    Format::pack_scales(batch.steps, batch.minima, batch.words);
    for (int j = 0; j < batch.n_parts; ++j) {
        const Floats * x = batch.x + j * Format::n;
        const Floats step = batch.steps.step.value * to_float(batch.steps.level[j]);
        const Floats minimum = batch.minima.step.value * to_float(batch.minima.level[j]);
        Ints levels[Format::n];
        if (!round_quickly<Format>(x, batch.fits[j], step, minimum, levels)) {
            for (int i = 0; i < Format::n; ++i) {
                levels[i] = greatest(least(nearest_int((x[i] + minimum) / step), all(Format::n_max)), all(0));
            }
        }
        const Ints empty = step == 0.0F;
        if (any(empty)) {
            for (int i = 0; i < Format::n; ++i) {
                levels[i] = select(empty, level_of_fit<Plan>(batch.fits[j], x[i]), levels[i]);
            }
        }
        pack_levels<Format>(levels, j, batch.words);
    }
}

template <class Format>
void quantize(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float *) {
    using Plan = Plain<Format::n, Format::n_max>;
    const std::int64_t n_blocks = n_rows * (n_per_row / QK_K);
    Batch<Format> batch;
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const std::int64_t n = n_blocks - first < lanes ? n_blocks - first : lanes;
        load_batch(x, first, n, n_blocks, batch.x);
        for (int j = 0; j < batch.n_parts; j += ways) {
            Floats w[ways * Format::n];
            for (int way = 0; way < ways; ++way) {
                Format::plain_weights(batch.x + (j + way) * Format::n, w + way * Format::n);
            }
            Search<Plan>(batch.x + j * Format::n, w, batch.fits + j).run();
        }
        take_fits(batch);
        round_scales<batch.n_parts, Format::n_scale_max>(batch.steps);
        round_scales<batch.n_parts, Format::n_scale_max>(batch.minima);
        finish<Format, Plan>(batch);
        store_batch(batch.words, Format::n_words, n, out + first * Format::n_words * 4);
    }
}

// Weights from the importances of the columns, in their place.
template <class Format>
PHIGGML_INLINE void weigh(const Floats * x, Floats * w) {
    Floats sum{};
    for (int i = 0; i < QK_K; ++i) {
        sum += x[i] * x[i];
    }
    const Floats variance = Format::variance(sum);
    for (int i = 0; i < QK_K; ++i) {
        w[i] *= square_root(variance + x[i] * x[i]);
    }
}

template <class Format>
void quantize_weighted(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                       const float * imatrix) {
    using Plan = Weighted<Format::n, Format::n_max>;
    const std::int64_t n_columns = n_per_row / QK_K;
    const std::int64_t n_blocks = n_rows * n_columns;
    Batch<Format> batch;
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const std::int64_t n = n_blocks - first < lanes ? n_blocks - first : lanes;
        Floats w[QK_K], sums[batch.n_parts];
        load_batch(x, first, n, n_blocks, batch.x);
        load_batch(imatrix, first, n, n_columns, w);
        weigh<Format>(batch.x, w);
        for (int j = 0; j < batch.n_parts; j += ways) {
            Search<Plan>(batch.x + j * Format::n, w + j * Format::n, batch.fits + j).run();
        }
        for (int j = 0; j < batch.n_parts; ++j) {
            sums[j] = batch.fits[j].sum_w;
        }
        take_fits(batch);
        const Ints strange = fit_scales<batch.n_parts, Format::n_scale_max>(sums, batch.steps, batch.minima);
        finish<Format, Plan>(batch);
        store_batch(batch.words, Format::n_words, n, out + first * Format::n_words * 4);
        if (any(strange)) {
            for (std::int64_t at = 0; at < n; ++at) {
                if (strange[at] != 0) {
                    const std::int64_t block = first + at;
                    quantize_by_ggml(Format::type, x + block * QK_K, out + block * Format::n_words * 4, 1, QK_K,
                                     imatrix + block % n_columns * QK_K);
                }
            }
        }
    }
}

}  // namespace

void add_k_offset(Table & table) {
    table.types[GGML_TYPE_Q2_K].quantize = quantize<Q2K>;
    table.types[GGML_TYPE_Q4_K].quantize = quantize<Q4K>;
    table.types[GGML_TYPE_Q5_K].quantize = quantize<Q5K>;
    table.types[GGML_TYPE_Q2_K].quantize_weighted = quantize_weighted<Q2K>;
    table.types[GGML_TYPE_Q4_K].quantize_weighted = quantize_weighted<Q4K>;
    table.types[GGML_TYPE_Q5_K].quantize_weighted = quantize_weighted<Q5K>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
