// The points of ggml's IQ3 lattices near each rounded group of four numbers, laid out for a search in vectors.
#pragma once

#include <cstdint>

#include "kernels/blocks.h"

namespace phiggml::kernels::PHIGGML_ISA::iq3 {

constexpr int dims = 4;      // numbers of a group
constexpr int n_levels = 8;  // of each number; level l stands for 2l + 1
constexpr int n_codes = n_levels * n_levels * n_levels * n_levels;
constexpr int longest_row = 16;

// A code has the level of number i of a group from bit 3i on. A word is a point of the lattice: the level of its number
// i from bit 4i on, its place in the grid, and flags.
constexpr int place_shift = 16;
constexpr std::int32_t place_mask = 0x1ff;
constexpr std::int32_t on_grid = 1 << 25;       // the point is what was rounded to
constexpr std::int32_t more_than_8 = 1 << 26;   // in the first word: the second half of the row has points too
constexpr std::int32_t out_of_lists = 1 << 27;  // in the first word, or with a code: see ggml's own list

constexpr int longest_list = 64;
constexpr int most_listed = 54000;

struct Lists {
    // By code, in ggml's order: the points that can be nearest, repeating the first to the row's end. These are fewer
    // than ggml looks at. It takes the first of the least sums, and sums of floating-point numbers are monotonic: a
    // point of which no coordinate is nearer than the same coordinate of an earlier one is never taken. This holds only
    // where no number of the group is so near the middle between two levels that it may lie on the other side of it.
    alignas(64) std::int32_t rows[n_codes][longest_row];
    // All points that ggml looks at, repeating the first to a multiple of eight, those of a code from start[code] on.
    std::int32_t start[n_codes + 1];
    std::int32_t listed[most_listed];
    std::int32_t zeros;  // the word of the point of code 0
};

// Of GGML_TYPE_IQ3_XXS or GGML_TYPE_IQ3_S, made by the first call; null if there is no memory.
const Lists * lists_of(ggml_type type);

}  // namespace phiggml::kernels::PHIGGML_ISA::iq3
