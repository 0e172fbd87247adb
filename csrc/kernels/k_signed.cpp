// Q3_K and Q6_K: each sub-block has a step, which is a small integer times that of the super-block. A batch of
// super-blocks is quantized at once, one in each lane.
#include "kernels/blocks.h"
#include "kernels/families.h"
#include "kernels/k_offset_blocks.h"
#include "kernels/k_offset_scales.h"
#include "kernels/k_signed_levels.h"
#include "kernels/k_signed_refine.h"
#include "kernels/signed_search.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

typedef std::uint8_t Bytes __attribute__((vector_size(32)));

PHIGGML_INLINE Bytes load_bytes32(const std::uint8_t * from) {
    Bytes v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

struct Q6K {
    static constexpr int n_max = 32;
    using Block = block_q6_K;

    struct Scales {
        Ints words[4];  // 16 bytes
        Ints step;
        Ints empty;  // super-blocks as good as zero
    };

    PHIGGML_INLINE static void weigh(const Floats *, Floats *) {}  // the importances as they are

    PHIGGML_INLINE static void round_steps(SignedBatch & batch, const Floats *, Scales & scales) {
        Floats size;
        const Floats greatest = greatest_step(batch.fits, size);
        scales.empty = size < 1e-15F;
        const Floats inverse = -128.0F / select(scales.empty, all(1.0F), greatest);
        const Halves step = to_halves(1.0F / inverse);
        Ints multiples[n_parts];
        for (int j = 0; j < n_parts; ++j) {
            multiples[j] = least(nearest_int(inverse * batch.fits[j].step), all(127));
        }
        for (int i = 0; i < 4; ++i) {
            scales.words[i] = Ints{};
            for (int k = 0; k < 4; ++k) {
                scales.words[i] |= (multiples[4 * i + k] & 0xff) << 8 * k;
            }
        }
        scales.step = step.bits;
        set_steps(batch, step.value, multiples);
    }

    PHIGGML_INLINE static void pack(const Scales & scales, int lane, const std::uint8_t * levels, Block & block) {
        if (scales.empty[lane] != 0) {
            std::memset(&block, 0, sizeof block);
            return;
        }
        for (int half = 0; half < 2; ++half) {
            const std::uint8_t * from = levels + half * 128;
            const Bytes a = load_bytes32(from), b = load_bytes32(from + 32);
            const Bytes c = load_bytes32(from + 64), d = load_bytes32(from + 96);
            const Bytes low[2] = {(a & 15) | c << 4, (b & 15) | d << 4};
            const Bytes high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
            std::memcpy(block.ql + 64 * half, low, sizeof low);
            std::memcpy(block.qh + 32 * half, &high, sizeof high);
        }
        for (int i = 0; i < 4; ++i) {
            const std::int32_t word = scales.words[i][lane];
            std::memcpy(block.scales + 4 * i, &word, sizeof word);
        }
        block.d = static_cast<ggml_half>(scales.step[lane]);
    }
};

struct Q3K {
    static constexpr int n_max = q3_max;
    using Block = block_q3_K;

    struct Scales {
        Ints words[3];  // sixteen integers of 6 bits
        Ints step;
    };

    PHIGGML_INLINE static void weigh(const Floats * x, Floats * w) {
        Floats sum{};
        for (int i = 0; i < QK_K; ++i) {
            sum += x[i] * x[i];
        }
        const Floats variance = 2.0F * sum / static_cast<float>(QK_K);
        for (int i = 0; i < QK_K; ++i) {
            w[i] *= square_root(variance + x[i] * x[i]);
        }
    }

    // The multiples, from -32 to 31, as they are stored: plus 32.
    PHIGGML_INLINE static void take(SignedBatch & batch, Ints * stored, const Halves & step, Scales & scales) {
        for (int i = 0; i < 3; ++i) {
            scales.words[i] = Ints{};
        }
        for (int j = 0; j < n_parts; ++j) {
            scales.words[j / 4 % 2] |= (stored[j] & 15) << (8 * (j % 4) + 4 * (j / 8));
            scales.words[2] |= stored[j] >> 4 << (8 * (j % 4) + 2 * (j / 4));
            stored[j] -= 32;
        }
        scales.step = step.bits;
        set_steps(batch, step.value, stored);
    }

    // By a search with the sums of the sub-blocks' weights.
    PHIGGML_INLINE static void round_steps(SignedBatch & batch, const Floats * w, Scales & scales) {
        Floats steps[n_parts], sums[n_parts];
        for (int j = 0; j < n_parts; ++j) {
            steps[j] = batch.fits[j].step;
            sums[j] = Floats{};
            for (int i = 0; i < part; ++i) {
                sums[j] += w[j * part + i];
            }
        }
        const SignedFit fit = search_signed<n_parts, 32>(steps, sums);
        Ints stored[n_parts];
        for (int j = 0; j < n_parts; ++j) {
            const Floats level = SignedLevels<32>().template round<last_trial>(fit.inverse * steps[j]);
            stored[j] = select(fit.peak.none, all(0), to_int(level) + 32);
        }
        take(batch, stored, to_halves(fit.step), scales);
    }

    // The last multiple for the greatest step.
    PHIGGML_INLINE static void round_steps(SignedBatch & batch, Scales & scales) {
        Floats size;
        const Floats greatest_of_all = greatest_step(batch.fits, size);
        const Ints empty = greatest_of_all == 0.0F;
        const Floats inverse = -32.0F / greatest_of_all;
        Ints stored[n_parts];
        for (int j = 0; j < n_parts; ++j) {
            const Ints multiple = nearest_int(inverse * batch.fits[j].step) << 24 >> 24;
            stored[j] = select(empty, all(0), greatest(least(multiple, all(31)), all(-32)) + 32);
        }
        take(batch, stored, to_halves(select(empty, all(0.0F), 1.0F / inverse)), scales);
    }

    PHIGGML_INLINE static void pack(const Scales & scales, int lane, const std::uint8_t * levels, Block & block) {
        Bytes high{};
        for (int half = 0; half < 2; ++half) {
            Bytes low{};
            for (int k = 0; k < 4; ++k) {
                const Bytes level = load_bytes32(levels + half * 128 + k * 32);
                low |= (level & 3) << 2 * k;
                high |= level >> 2 << (4 * half + k);
            }
            std::memcpy(block.qs + 32 * half, &low, sizeof low);
        }
        std::memcpy(block.hmask, &high, sizeof high);
        for (int i = 0; i < 3; ++i) {
            const std::int32_t word = scales.words[i][lane];
            std::memcpy(block.scales + 4 * i, &word, sizeof word);
        }
        block.d = static_cast<ggml_half>(scales.step[lane]);
    }
};

// Levels that were moved one by one, of sub-blocks whose rounded step is zero.
struct MovedLevels {
    Chosen chosen;
    Ints parts[n_parts];
    std::uint8_t levels[n_parts * lanes * part];
};

template <class Format>
void finish(const SignedBatch & batch, const typename Format::Scales & scales, const MovedLevels * moved,
            const float * rows, std::int64_t n, std::uint8_t * out) {
    for (int lane = 0; lane < n; ++lane) {
        std::uint8_t levels[QK_K];
        levels_of_super_block<Format::n_max>(rows + lane * QK_K, batch, lane, levels);
        for (int j = 0; moved != nullptr && j < n_parts; ++j) {
            if (moved->parts[j][lane] != 0) {
                std::memcpy(levels + j * part, moved->levels + (j * lanes + lane) * part, part);
            }
        }
        typename Format::Block block;
        Format::pack(scales, lane, levels, block);
        std::memcpy(out + lane * sizeof block, &block, sizeof block);
    }
}

template <class Format, bool weighted>
void quantize(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float * imatrix) {
    const std::int64_t n_columns = n_per_row / QK_K, n_blocks = n_rows * n_columns;
    SignedBatch batch;
    typename Format::Scales scales;
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const std::int64_t n = n_blocks - first < lanes ? n_blocks - first : lanes;
        Floats w[QK_K];
        load_batch(x, first, n, n_blocks, batch.x);
        if constexpr (weighted) {
            load_batch(imatrix, first, n, n_columns, w);
            Format::weigh(batch.x, w);
        } else {
            for (int i = 0; i < QK_K; ++i) {
                w[i] = batch.x[i] * batch.x[i];
            }
        }
        for (int j = 0; j < n_parts; ++j) {
            batch.fits[j] = search_signed<part, Format::n_max>(batch.x + j * part, w + j * part);
        }
        Format::round_steps(batch, w, scales);
        finish<Format>(batch, scales, nullptr, x + first * QK_K, n, out + first * sizeof(typename Format::Block));
    }
}

void quantize_q3(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float *) {
    const std::int64_t n_blocks = n_rows * (n_per_row / QK_K);
    Q3Batch batch;
    Q3K::Scales scales;
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const std::int64_t n = n_blocks - first < lanes ? n_blocks - first : lanes;
        batch.rows = x + first * QK_K;
        load_batch(x, first, n, n_blocks, batch.x);
        Chosen chosen;
        for (int j = 0; j < n_parts; ++j) {
            fit_peak(batch, j);
            chosen.add(j, batch.restless[j], n);
        }
        refine(batch, chosen, nullptr);
        Q3K::round_steps(batch, scales);
        MovedLevels moved;
        for (int j = 0; j < n_parts; ++j) {
            moved.parts[j] = batch.restless[j] & (batch.steps[j] == 0.0F);
            moved.chosen.add(j, moved.parts[j], n);
        }
        refine(batch, moved.chosen, moved.levels);
        finish<Q3K>(batch, scales, moved.chosen.n == 0 ? nullptr : &moved, batch.rows, n,
                    out + first * sizeof(block_q3_K));
    }
}

}  // namespace

void add_k_signed(Table & table) {
    table.types[GGML_TYPE_Q3_K].quantize = quantize_q3;
    table.types[GGML_TYPE_Q6_K].quantize = quantize<Q6K, false>;
    table.types[GGML_TYPE_Q3_K].quantize_weighted = quantize<Q3K, true>;
    table.types[GGML_TYPE_Q6_K].quantize_weighted = quantize<Q6K, true>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
