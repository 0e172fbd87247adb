#include "kernels/blocks.h"
#include "kernels/iq1_levels.h"
#include "kernels/iq1_types.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int size = 16;
constexpr int sub_blocks = QK_K / size;
constexpr int sub_blocks_at_once = sub_blocks < lanes ? sub_blocks : lanes;
constexpr float above[3] = {-1 + iq1_shift, iq1_shift, 1 + iq1_shift};
constexpr float below[3] = {-1 - iq1_shift, -iq1_shift, 1 - iq1_shift};

// Steps of the squared values from level to level.
constexpr float above_01 = above[0] * above[0] - above[1] * above[1];
constexpr float above_12 = above[1] * above[1] - above[2] * above[2];
constexpr float below_01 = below[0] * below[0] - below[1] * below[1];
constexpr float below_12 = below[1] * below[1] - below[2] * below[2];

// Of the numbers of one half in sorted order: sums of weight * x and of weights up to each split, and the latter times
// the second step.
struct Sums {
    Floats x[size + 1], weights[size + 1];
    Floats weights_above[size + 1], weights_below[size + 1];
};

PHIGGML_INLINE void add_up(const SubBlocks<size> & blocks, const Floats * sorted, const Ints * places, Sums * halves) {
    Ints lane;
    for (int i = 0; i < lanes; ++i) {
        lane[i] = i;
    }
    for (int half = 0; half < 2; ++half) {
        Sums & sums = halves[half];
        sums.x[0] = sums.weights[0] = sums.weights_above[0] = sums.weights_below[0] = Floats{};
        for (int i = 0; i < size; ++i) {
            const Floats weight = gather(reinterpret_cast<const float *>(blocks.weights), places[i] * lanes + lane);
            const Ints here = (places[i] >= size / 2) == (Ints{} - half);
            sums.x[i + 1] = select(here, sums.x[i] + weight * sorted[i], sums.x[i]);
            sums.weights[i + 1] = select(here, sums.weights[i] + weight, sums.weights[i]);
            sums.weights_above[i + 1] = sums.weights[i + 1] * above_12;
            sums.weights_below[i + 1] = sums.weights[i + 1] * below_12;
        }
    }
}

// For one first split: what a half has before the second one is known.
struct Beginning {
    Floats x_above, x_below, x;
    Floats weights_above, weights_below;
};

PHIGGML_INLINE Beginning begin_half(const Sums & sums, int first) {
    const Floats x = sums.x[size], weights = sums.weights[size];
    return {x * above[2], x * below[2], sums.x[first], weights * above[2] * above[2] + sums.weights[first] * above_01,
            weights * below[2] * below[2] + sums.weights[first] * below_01};
}

struct HalfFit {
    Floats products_above, products_below, squares_above, squares_below;
};

PHIGGML_INLINE HalfFit fit_half(const Sums & sums, const Beginning & begin, int second) {
    const Floats x = begin.x + sums.x[second];
    return {begin.x_above - x, begin.x_below - x, begin.weights_above + sums.weights_above[second],
            begin.weights_below + sums.weights_below[second]};
}

// Of one pair of splits: both halves above, the second below, the first below, both below.
struct Fit {
    Floats products[4], squares[4];
};

PHIGGML_INLINE Fit fit(const Sums * halves, const Beginning * begins, int second) {
    const HalfFit a = fit_half(halves[0], begins[0], second), b = fit_half(halves[1], begins[1], second);
    return {{a.products_above + b.products_above, a.products_above + b.products_below,
             a.products_below + b.products_above, a.products_below + b.products_below},
            {a.squares_above + b.squares_above, a.squares_above + b.squares_below, a.squares_below + b.squares_above,
             a.squares_below + b.squares_below}};
}

PHIGGML_INLINE RoughBest search_roughly(const Sums * halves) {
    RoughBest best;
    for (int first = 0; first <= size; first += 4) {
        const Beginning begins[2] = {begin_half(halves[0], first), begin_half(halves[1], first)};
        for (int second = first; second <= size; second += 4) {
            const Fit found = fit(halves, begins, second);
            for (int signs = 0; signs < 4; ++signs) {
                consider(found.products[signs], found.squares[signs], best);
            }
        }
    }
    return best;
}

// The choice is (first * 32 + second) * 4, plus 2 if the first half has the values below, plus 1 if the second has.
PHIGGML_INLINE void search(const Sums * halves, BestSplits & best) {
    for (int first = 0; first <= size; ++first) {
        const Beginning begins[2] = {begin_half(halves[0], first), begin_half(halves[1], first)};
        for (int second = first; second <= size; ++second) {
            const Fit found = fit(halves, begins, second);
            if (any_may_be_better(found.products, found.squares, best)) {
                for (int signs = 0; signs < 4; ++signs) {
                    consider(found.products[signs], found.squares[signs], (first * 32 + second) * 4 + signs, best);
                }
            }
        }
    }
}

__attribute__((noinline)) void split(SubBlocks<size> & blocks) {
    Floats sorted[size];
    Ints places[size];
    Sums halves[2];
    sort_lanes<size>(blocks.x, sorted, places);
    add_up(blocks, sorted, places, halves);
    BestSplits best =
        begin_after(search_roughly(halves), halves[0].weights[size] + halves[1].weights[size], blocks.greatest_number);
    search(halves, best);
    blocks.empty = (blocks.greatest_number < 1e-7F) | (best.choice < 0);
    blocks.scale = best.scale;
    blocks.shifts[0] = select((best.choice & 2) != 0, all(below[1]), all(above[1]));
    blocks.shifts[1] = select((best.choice & 1) != 0, all(below[1]), all(above[1]));
    assign_levels(places, best.choice >> 7, (best.choice >> 2) & 31, blocks);
}

// What the search found out about a super-block.
struct Found {
    float scale[sub_blocks];
    float shifts[2][sub_blocks];
    std::int32_t words[sub_blocks];
    std::uint16_t indices[sub_blocks][size / 8];
};

PHIGGML_INLINE void search_block(const Iq1Lattice & lattice, const float * x, const float * weights, Found & found) {
    for (int sub = 0; sub < sub_blocks; sub += sub_blocks_at_once) {
        SubBlocks<size> blocks;
        load_numbers(x + sub * size, weights + sub * size, blocks);
        split(blocks);
        settle_on_lattice(lattice, x + sub * size, weights + sub * size, sub_blocks_at_once, blocks,
                          found.indices + sub);
        fit_scale(blocks);
        store(found.scale + sub, blocks.scale);
        store(found.words + sub, blocks.words[0]);
        for (int half = 0; half < 2; ++half) {
            store(found.shifts[half] + sub, select(blocks.empty, all(above[1]), blocks.shifts[half]));
        }
    }
}

// The terms of the sums of weight * value * x and weight * value * value, with the sub-blocks' levels of the scale.
PHIGGML_INLINE void write_terms(const float * x, const float * weights, const Found & found,
                                const std::int32_t * scale_levels, float * products, float * squares) {
    for (int i = 0; i < QK_K; i += lanes) {
        const int sub = i / size;
        Ints place;
        for (int lane = 0; lane < lanes; ++lane) {
            place[lane] = i % size + lane;
        }
        const Ints level = (all(found.words[sub]) >> (2 * place)) & 3;
        const Floats shift = select(place < size / 2, all(found.shifts[0][sub]), all(found.shifts[1][sub]));
        const Floats value = (to_float(level) + (shift - 1.0F)) * static_cast<float>(2 * scale_levels[sub] + 1);
        const Floats weighted = load(weights + i) * value;
        store(products + i, weighted * load(x + i));
        store(squares + i, weighted * value);
    }
}

// All but the super-block's scale. Returns the greatest of the sub-blocks' scales, and writes their levels if it is not
// 0.
float write_indices(const Found & found, std::int32_t * scale_levels, block_iq1_m & out) {
    float greatest_scale = 0;
    for (int sub = 0; sub < sub_blocks; ++sub) {
        greatest_scale = greatest_scale > found.scale[sub] ? greatest_scale : found.scale[sub];
        const std::uint16_t * indices = found.indices[sub];
        out.qs[2 * sub] = static_cast<std::uint8_t>(indices[0]);
        out.qs[2 * sub + 1] = static_cast<std::uint8_t>(indices[1]);
        out.qh[sub] = static_cast<std::uint8_t>((indices[0] >> 8) | ((indices[1] >> 8) << 4));
    }
    std::memset(out.scales, 0, sizeof out.scales);
    if (greatest_scale == 0) {
        return 0;
    }
    const float inverse = 1 / (greatest_scale / 15);
    for (int sub = 0; sub < sub_blocks; sub += lanes) {
        const Ints levels = nearest_int(0.5F * (inverse * load(found.scale + sub) - 1.0F));
        store(scale_levels + sub, greatest(least(levels, all(7)), all(0)));
    }
    for (int sub = 0; sub < sub_blocks; ++sub) {
        const int signs = (found.shifts[0][sub] < 0 ? 0x08 : 0) | (found.shifts[1][sub] < 0 ? 0x80 : 0);
        out.qh[sub] = static_cast<std::uint8_t>(out.qh[sub] | signs);
    }
    return greatest_scale;
}

void write_scales(float d, const std::int32_t * scale_levels, block_iq1_m & out) {
    const unsigned half = to_half(d * 1.1125F);
    for (int i = 0; i < 4; ++i) {
        unsigned word = (half << (12 - 4 * i)) & 0xf000;
        for (int j = 0; j < 4; ++j) {
            word |= static_cast<unsigned>(scale_levels[4 * i + j]) << (3 * j);
        }
        out.scales[2 * i] = static_cast<std::uint8_t>(word);
        out.scales[2 * i + 1] = static_cast<std::uint8_t>(word >> 8);
    }
}

// Up to `lanes` super-blocks, whose last sums run side by side.
void quantize_blocks(const Iq1Lattice & lattice, const float * x, const float * const * imatrix, int n_blocks,
                     block_iq1_m * out) {
    float products[lanes][QK_K], squares[lanes][QK_K];
    float weights[QK_K], sigma2[lanes], greatest_scale[lanes];
    std::int32_t scale_levels[lanes][sub_blocks];
    if (imatrix != nullptr) {
        mean_squares(x, n_blocks, sigma2);
    }
    for (int i = 0; i < n_blocks; ++i) {
        const float * block = x + i * QK_K;
        for (int j = 0; j < QK_K && imatrix == nullptr; j += lanes) {
            store(weights + j, load(block + j) * load(block + j));
        }
        if (imatrix != nullptr) {
            weigh(block, imatrix[i], sigma2[i], weights);
        }
        Found found;
        search_block(lattice, block, weights, found);
        greatest_scale[i] = write_indices(found, scale_levels[i], out[i]);
        if (greatest_scale[i] != 0) {
            write_terms(block, weights, found, scale_levels[i], products[i], squares[i]);
        } else {
            std::memset(products[i], 0, sizeof products[i]);
            std::memset(squares[i], 0, sizeof squares[i]);
        }
    }
    for (int i = n_blocks; i < lanes; ++i) {
        std::memset(products[i], 0, sizeof products[i]);
        std::memset(squares[i], 0, sizeof squares[i]);
    }
    const auto itself = [](Floats v) { return v; };
    const Floats all_products = sum_in_order(products[0], QK_K, QK_K, itself);
    const Floats all_squares = sum_in_order(squares[0], QK_K, QK_K, itself);
    for (int i = 0; i < n_blocks; ++i) {
        if (greatest_scale[i] != 0) {
            const float d = all_squares[i] > 0 ? all_products[i] / all_squares[i] : greatest_scale[i] / 15;
            write_scales(d, scale_levels[i], out[i]);
        }
    }
}

}  // namespace

void quantize_iq1_m(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                    const float * imatrix) {
    const Iq1Lattice * lattice = iq1_lattice();
    if (lattice == nullptr) {
        quantize_by_ggml(GGML_TYPE_IQ1_M, x, out, n_rows, n_per_row, imatrix);
        return;
    }
    auto * blocks = reinterpret_cast<block_iq1_m *>(out);
    const std::int64_t n_blocks = n_rows * n_per_row / QK_K;
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const int n = static_cast<int>(n_blocks - first < lanes ? n_blocks - first : lanes);
        const float * importances[lanes];
        for (int i = 0; i < n && imatrix != nullptr; ++i) {
            importances[i] = imatrix + (first + i) * QK_K % n_per_row;
        }
        quantize_blocks(*lattice, x + first * QK_K, imatrix != nullptr ? importances : nullptr, n, blocks + first);
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA
