// IQ4_NL and IQ4_XS. Each lane searches the scale of one block of 32 numbers.
#include "kernels/blocks.h"
#include "kernels/families.h"
#include "kernels/iq4_levels.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int width = 32;            // numbers that share a scale
constexpr int group = QK_K / width;  // blocks in a super-block of IQ4_XS
constexpr int super_blocks_per_tile = lanes / group;
constexpr float least_magnitude = 1e-15F;  // below which ggml takes a block for zeros
constexpr int furthest_try = 7;            // the steps from the first scale, both ways
constexpr int n_tries = 1 + (2 * furthest_try + 1);
constexpr int tries_at_once = 4;  // as many as keep the adders busy

// Vector j has number j of the block of each lane.
struct Tile {
    Floats x[width];
    Floats weight[width];
};

// Copies n rows and lets the other lanes have zeros.
template <int columns>
PHIGGML_INLINE void pad(const float * x, std::int64_t n, float * rows) {
    std::memset(rows, 0, sizeof(float) * lanes * columns);
    std::memcpy(rows, x, sizeof(float) * static_cast<std::size_t>(n) * columns);
}

// Importances of n rows of numbers of which the first is number `first` of the matrix, in rows of n_per_row.
template <int columns>
PHIGGML_INLINE void spread(const float * imatrix, std::int64_t n_per_row, std::int64_t first, std::int64_t n,
                           float * rows) {
    std::memset(rows, 0, sizeof(float) * lanes * width);
    std::int64_t column = first % n_per_row;
    for (std::int64_t row = 0; row < n; ++row) {
        std::memcpy(rows + row * columns, imatrix + column, sizeof(float) * columns);
        column = column + columns == n_per_row ? 0 : column + columns;
    }
}

PHIGGML_INLINE Floats sum_of_squares(const Tile & tile) {
    Floats sum{};
    for (const Floats & x : tile.x) {
        sum += x * x;
    }
    return sum;
}

PHIGGML_INLINE void weigh(Tile & tile) {
    for (int j = 0; j < width; ++j) {
        tile.weight[j] = tile.x[j] * tile.x[j];
    }
}

PHIGGML_INLINE void weigh(Tile & tile, const float * importances, Floats sigma2) {
    transpose<width>(importances, width, tile.weight);
    for (int j = 0; j < width; ++j) {
        tile.weight[j] *= square_root(sigma2 + tile.x[j] * tile.x[j]);
    }
}

// The sums by which ggml judges a scale, of the levels that the inverse scales give.
struct Fit {
    Floats xq[tries_at_once];
    Floats q2[tries_at_once];
};

PHIGGML_INLINE Fit fit(const Tile & tile, const Floats * inverse) {
    Fit sums{};
    for (int j = 0; j < width; ++j) {
        const Floats x = tile.x[j], weight = tile.weight[j];
        for (int t = 0; t < tries_at_once; ++t) {
            const Floats level = nearest_level(inverse[t] * x);
            const Floats weighted = weight * level;
            sums.xq[t] += weighted * x;
            sums.q2[t] += weighted * level;
        }
    }
    return sums;
}

// The scale of each lane's block.
PHIGGML_INLINE Floats best_scale(const Tile & tile) {
    Floats greatest_magnitude{}, extreme{};
    for (const Floats & x : tile.x) {
        const Ints greater = magnitude(x) > greatest_magnitude;
        greatest_magnitude = select(greater, magnitude(x), greatest_magnitude);
        extreme = select(greater, x, extreme);
    }
    const Ints empty = greatest_magnitude < least_magnitude;
    extreme = select(empty, all(1.0F), extreme);

    Floats inverse[n_tries];
    inverse[0] = 1.0F / (-extreme / levels[0]);
    for (int t = 1; t < n_tries; ++t) {
        inverse[t] = (static_cast<float>(t - 1 - furthest_try) + levels[0]) / extreme;
    }
    Floats scale{}, best{};
    for (int from = 0; from < n_tries; from += tries_at_once) {
        const Fit sums = fit(tile, inverse + from);
        for (int t = 0; t < tries_at_once; ++t) {
            const Floats xq = sums.xq[t], q2 = sums.q2[t];
            const Ints first = all(from + t == 0 ? -1 : 0);  // which has nothing to beat
            const Ints better = (q2 > 0) & (first | (xq * xq > best * q2));
            scale = select(better, xq / q2, scale);
            best = select(better, scale * xq, best);
        }
    }
    return select(empty, Floats{}, scale);
}

PHIGGML_INLINE Floats inverse_or_zero(Floats v) {
    return select(v != 0, 1.0F / v, Floats{});
}

// Finds each number's level and writes 16 bytes for each of n lanes, `stride` bytes apart.
PHIGGML_INLINE void write_levels(const Tile & tile, Floats inverse, std::uint8_t * const * out, std::int64_t n) {
    std::int32_t words[4][lanes];
    for (int word = 0; word < 4; ++word) {
        Ints packed{};
        for (int byte = 0; byte < 4; ++byte) {
            const int j = 4 * word + byte;
            const Ints low = index_of_nearest_level(inverse * tile.x[j]);
            const Ints high = index_of_nearest_level(inverse * tile.x[j + width / 2]);
            packed |= (low | (high << 4)) << (8 * byte);
        }
        store(words[word], packed);
    }
    for (std::int64_t lane = 0; lane < n; ++lane) {
        for (int word = 0; word < 4; ++word) {
            std::memcpy(out[lane] + 4 * word, &words[word][lane], 4);
        }
    }
}

template <bool weighted>
void quantize_nl(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                 const float * imatrix) {
    auto * blocks = reinterpret_cast<block_iq4_nl *>(out);
    const std::int64_t n_blocks = n_rows * n_per_row / width;
    float rows[lanes * width];
    for (std::int64_t first = 0; first < n_blocks; first += lanes) {
        const std::int64_t n = n_blocks - first < lanes ? n_blocks - first : lanes;
        Tile tile;
        pad<width>(x + first * width, n, rows);
        transpose<width>(rows, width, tile.x);
        if (weighted) {
            spread<width>(imatrix, n_per_row, first * width, n, rows);
            weigh(tile, rows, sum_of_squares(tile) * (2.0F / width));
        } else {
            weigh(tile);
        }
        float scales[lanes];
        std::uint8_t * levels_of[lanes];
        const Floats scale = best_scale(tile);
        store(scales, scale);
        for (std::int64_t lane = 0; lane < n; ++lane) {
            blocks[first + lane].d = to_half(scales[lane]);
            levels_of[lane] = blocks[first + lane].qs;
        }
        write_levels(tile, inverse_or_zero(scale), levels_of, n);
    }
}

// 2 / QK_K times the sum of squares of each of n super-blocks, at most one for each lane.
PHIGGML_INLINE void variances(const float * x, std::int64_t n, float * out) {
    Ints offsets{};
    for (int lane = 0; lane < n; ++lane) {
        offsets[lane] = lane * QK_K;
    }
    Floats sum{};
    for (int i = 0; i < QK_K; ++i) {
        const Floats number = gather(x + i, offsets);
        sum += number * number;
    }
    store(out, sum * (2.0F / QK_K));
}

// The scale of a super-block, of which those of its blocks are to be multiples.
PHIGGML_INLINE float scale_of_scales(const float * scales) {
    float extreme = 0, greatest_magnitude = 0;
    for (int i = 0; i < group; ++i) {
        const float size = __builtin_fabsf(scales[i]);
        if (size > greatest_magnitude) {
            greatest_magnitude = size;
            extreme = scales[i];
        }
    }
    return -extreme / 32;
}

PHIGGML_INLINE void write_scales(const std::int32_t * scales, block_iq4_xs & block) {
    unsigned high = 0;
    for (int i = 0; i < group; i += 2) {
        const auto even = static_cast<unsigned>(scales[i] + 32), odd = static_cast<unsigned>(scales[i + 1] + 32);
        block.scales_l[i / 2] = static_cast<std::uint8_t>((even & 15) | (odd & 15) << 4);
        high |= (even >> 4 | odd >> 4 << 2) << (2 * i);
    }
    block.scales_h = static_cast<std::uint16_t>(high);
}

PHIGGML_INLINE void finish_xs(const Tile & tile, block_iq4_xs * blocks, std::int64_t n) {
    float scales[lanes], scale_of[lanes];
    std::int32_t multiples[lanes];
    std::uint8_t * levels_of[lanes];
    const Floats scale = best_scale(tile);
    store(scales, scale);
    for (int lane = 0; lane < lanes; ++lane) {
        scale_of[lane] = lane % group == 0 ? scale_of_scales(scales + lane) : scale_of[lane - 1];
        levels_of[lane] = blocks[lane / group < n ? lane / group : 0].qs + lane % group * (width / 2);
    }
    const Floats unit = load(scale_of);
    const Ints multiple = greatest(all(-32), least(all(31), nearest_int(inverse_or_zero(unit) * scale)));
    store(multiples, multiple);
    for (std::int64_t i = 0; i < n; ++i) {
        blocks[i].d = to_half(scale_of[i * group]);
        write_scales(multiples + i * group, blocks[i]);
    }
    write_levels(tile, inverse_or_zero(unit * to_float(multiple)), levels_of, n * group);
}

template <bool weighted>
void quantize_xs(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                 const float * imatrix) {
    auto * blocks = reinterpret_cast<block_iq4_xs *>(out);
    const std::int64_t n_blocks = n_rows * n_per_row / QK_K;
    float rows[lanes * width];
    float sigma2[lanes];
    for (std::int64_t first = 0; first < n_blocks; first += super_blocks_per_tile) {
        const std::int64_t left = n_blocks - first;
        const std::int64_t n = left < super_blocks_per_tile ? left : super_blocks_per_tile;
        Tile tile;
        pad<width>(x + first * QK_K, n * group, rows);
        transpose<width>(rows, width, tile.x);
        if (weighted) {
            if (first % lanes == 0) {
                variances(x + first * QK_K, left < lanes ? left : lanes, sigma2);
            }
            spread<QK_K>(imatrix, n_per_row, first * QK_K, n, rows);
            Floats sigma2_of_lane;
            for (int lane = 0; lane < lanes; ++lane) {
                sigma2_of_lane[lane] = sigma2[first % lanes + lane / group];
            }
            weigh(tile, rows, sigma2_of_lane);
        } else {
            weigh(tile);
        }
        finish_xs(tile, blocks + first, n);
    }
}

}  // namespace

void add_iq4(Table & table) {
    table.types[GGML_TYPE_IQ4_NL].quantize = quantize_nl<false>;
    table.types[GGML_TYPE_IQ4_NL].quantize_weighted = quantize_nl<true>;
    table.types[GGML_TYPE_IQ4_XS].quantize = quantize_xs<false>;
    table.types[GGML_TYPE_IQ4_XS].quantize_weighted = quantize_xs<true>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
