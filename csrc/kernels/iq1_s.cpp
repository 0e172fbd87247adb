#include "kernels/blocks.h"
#include "kernels/iq1_levels.h"
#include "kernels/iq1_types.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int size = 32;
constexpr int sub_blocks = QK_K / size;
constexpr int blocks_at_once = lanes / sub_blocks;
constexpr float above[3] = {-1 + iq1_shift, iq1_shift, 1 + iq1_shift};
constexpr float below[3] = {-1 - iq1_shift, -iq1_shift, 1 - iq1_shift};

// Of numbers in sorted order: sums of weight * x and of weights up to each split, and what they give for the numbers of
// the greatest level, with the values above and below.
struct Sums {
    Floats x[size + 1], weights[size + 1];
    Floats middle_x[size + 1], middle_weights[size + 1];  // times the middle level's value, and its square
    Floats x_above[size + 1], x_below[size + 1];
    Floats weights_above[size + 1], weights_below[size + 1];
};

// To scale sums before they are subtracted is as good as after, where no sum becomes too small for it. Says so.
PHIGGML_INLINE bool add_up(const SubBlocks<size> & blocks, const Floats * sorted, const Ints * places, Sums & sums) {
    Ints inexact = {};
    Ints lane;
    for (int i = 0; i < lanes; ++i) {
        lane[i] = i;
    }
    sums.x[0] = sums.weights[0] = sums.middle_x[0] = sums.middle_weights[0] = Floats{};
    for (int i = 0; i < size; ++i) {
        const Floats weight = gather(reinterpret_cast<const float *>(blocks.weights), places[i] * lanes + lane);
        const Floats x = sums.x[i] + weight * sorted[i];
        const Floats weights = sums.weights[i] + weight;
        sums.x[i + 1] = x;
        sums.weights[i + 1] = weights;
        sums.middle_x[i + 1] = x * above[1];
        sums.middle_weights[i + 1] = weights * above[1] * above[1];
        inexact |= sums.middle_x[i + 1] / above[1] != x;
        inexact |= sums.middle_weights[i + 1] / above[1] / above[1] != weights;
    }
    for (int i = 0; i <= size; ++i) {
        const Floats x = sums.x[size] - sums.x[i], weights = sums.weights[size] - sums.weights[i];
        sums.x_above[i] = x * above[2];
        sums.x_below[i] = x * below[2];
        sums.weights_above[i] = weights * above[2] * above[2];
        sums.weights_below[i] = weights * below[2] * below[2];
    }
    return !any(inexact);
}

// Of one pair of splits, with the values above and below.
struct Fit {
    Floats products[2], squares[2];
};

// The first split, and what there is before it.
struct Beginning {
    Floats x_above, x_below, weights_above, weights_below;
    Floats middle_x, middle_weights;
};

template <bool scaled>
PHIGGML_INLINE Beginning begin_at(const Sums & sums, int first) {
    const Floats x = sums.x[first], weights = sums.weights[first];
    return {x * above[0],
            x * below[0],
            weights * above[0] * above[0],
            weights * below[0] * below[0],
            scaled ? sums.middle_x[first] : x,
            scaled ? sums.middle_weights[first] : weights};
}

template <bool scaled>
PHIGGML_INLINE Fit fit(const Sums & sums, const Beginning & begin, int second) {
    Floats x = (scaled ? sums.middle_x : sums.x)[second] - begin.middle_x;
    Floats weights = (scaled ? sums.middle_weights : sums.weights)[second] - begin.middle_weights;
    if (!scaled) {
        x = x * above[1];
        weights = weights * above[1] * above[1];
    }
    return {{begin.x_above + x + sums.x_above[second], begin.x_below - x + sums.x_below[second]},
            {begin.weights_above + weights + sums.weights_above[second],
             begin.weights_below + weights + sums.weights_below[second]}};
}

PHIGGML_INLINE RoughBest search_roughly(const Sums & sums) {
    RoughBest best;
    for (int first = 0; first <= size; first += 4) {
        const Beginning begin = begin_at<false>(sums, first);
        for (int second = first; second <= size; second += 4) {
            const Fit found = fit<false>(sums, begin, second);
            consider(found.products[0], found.squares[0], best);
            consider(found.products[1], found.squares[1], best);
        }
    }
    return best;
}

// The choice is (first * 64 + second) * 2, plus 1 for the values below.
template <bool scaled>
PHIGGML_INLINE void search(const Sums & sums, BestSplits & best) {
    for (int first = 0; first <= size; ++first) {
        const Beginning begin = begin_at<scaled>(sums, first);
        for (int second = first; second <= size; ++second) {
            const Fit found = fit<scaled>(sums, begin, second);
            if (any_may_be_better(found.products, found.squares, best)) {
                const int choice = (first * 64 + second) * 2;
                consider(found.products[0], found.squares[0], choice, best);
                consider(found.products[1], found.squares[1], choice + 1, best);
            }
        }
    }
}

__attribute__((noinline)) void split(SubBlocks<size> & blocks) {
    Floats sorted[size];
    Ints places[size];
    Sums sums;
    sort_lanes<size>(blocks.x, sorted, places);
    const bool scaled = add_up(blocks, sorted, places, sums);
    BestSplits best = begin_after(search_roughly(sums), sums.weights[size], blocks.greatest_number);
    if (scaled) {
        search<true>(sums, best);
    } else {
        search<false>(sums, best);
    }
    blocks.empty = (blocks.greatest_number < 1e-12F) | (best.choice < 0);
    blocks.scale = best.scale;
    blocks.shifts[0] = blocks.shifts[1] = select((best.choice & 1) != 0, all(below[1]), all(above[1]));
    assign_levels(places, best.choice >> 7, (best.choice >> 1) & 63, blocks);
}

void write_block(const float * scale, const float * shift, const std::int32_t * empty,
                 const std::uint16_t (*indices)[size / 8], block_iq1_s & out) {
    float greatest_scale = 0;
    for (int sub = 0; sub < sub_blocks; ++sub) {
        greatest_scale = greatest_scale > scale[sub] ? greatest_scale : scale[sub];
        unsigned high = 0;
        for (int group = 0; group < size / 8; ++group) {
            const unsigned index = empty[sub] ? 0 : indices[sub][group];
            out.qs[size / 8 * sub + group] = static_cast<std::uint8_t>(index);
            high |= (index >> 8) << (3 * group);
        }
        out.qh[sub] = static_cast<std::uint16_t>(high);
    }
    out.d = 0;
    if (greatest_scale == 0) {
        return;
    }
    const float d = greatest_scale / 15;
    const float inverse = 1 / d;
    out.d = to_half(d * 1.125F);
    Floats scales = {};
    std::memcpy(&scales, scale, sub_blocks * sizeof(float));
    const Ints levels = greatest(least(nearest_int(0.5F * (inverse * scales - 1.0F)), all(7)), all(0));
    for (int sub = 0; sub < sub_blocks; ++sub) {
        const int sign = shift[sub] < 0 && !empty[sub] ? 8 : 0;
        out.qh[sub] = static_cast<std::uint16_t>(out.qh[sub] | ((levels[sub] | sign) << 12));
    }
}

// Up to blocks_at_once super-blocks; x and weights have room for as many.
void quantize_blocks(const Iq1Lattice & lattice, const float * x, const float * weights, int n_blocks,
                     block_iq1_s * out) {
    SubBlocks<size> blocks;
    std::uint16_t indices[lanes][size / 8];
    load_numbers(x, weights, blocks);
    split(blocks);
    settle_on_lattice(lattice, x, weights, n_blocks * sub_blocks, blocks, indices);
    fit_scale(blocks);
    float scale[lanes], shift[lanes];
    std::int32_t empty[lanes];
    store(scale, blocks.scale);
    store(shift, blocks.shifts[0]);
    store(empty, blocks.empty);
    for (int block = 0; block < n_blocks; ++block) {
        const int lane = block * sub_blocks;
        write_block(scale + lane, shift + lane, empty + lane, indices + lane, out[block]);
    }
}

}  // namespace

void quantize_iq1_s(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                    const float * imatrix) {
    const Iq1Lattice * lattice = iq1_lattice();
    if (lattice == nullptr) {
        quantize_by_ggml(GGML_TYPE_IQ1_S, x, out, n_rows, n_per_row, imatrix);
        return;
    }
    auto * blocks = reinterpret_cast<block_iq1_s *>(out);
    const std::int64_t n_blocks = n_rows * n_per_row / QK_K;
    float sigma2[lanes];
    float numbers[blocks_at_once * QK_K] = {}, weights[blocks_at_once * QK_K] = {};
    for (std::int64_t first = 0; first < n_blocks; first += blocks_at_once) {
        const int at = static_cast<int>(first % lanes);
        const std::int64_t left = n_blocks - first;
        if (at == 0) {
            mean_squares(x + first * QK_K, static_cast<int>(left < lanes ? left : lanes), sigma2);
        }
        const int n = static_cast<int>(left < blocks_at_once ? left : blocks_at_once);
        for (int i = 0; i < n; ++i) {
            const float * block = x + (first + i) * QK_K;
            std::memcpy(numbers + i * QK_K, block, QK_K * sizeof(float));
            weigh(block, imatrix + (first + i) * QK_K % n_per_row, sigma2[at + i], weights + i * QK_K);
        }
        quantize_blocks(*lattice, numbers, weights, n, blocks + first);
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA
