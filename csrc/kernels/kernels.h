// The vectorised quantizers of this build, one table of them for each instruction set.
#pragma once

#include <cstdint>

namespace phiggml::kernels {

// Rows of finite numbers, contiguous, to blocks. `imatrix` has one importance for each column, or is null.
using Quantize = void (*)(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                          const float * imatrix);
// Blocks of n numbers, contiguous, to numbers.
using Dequantize = void (*)(const std::uint8_t * data, float * out, std::int64_t n);

// What a type has kernels for; ggml's own functions do what is null.
struct Kernel {
    Quantize quantize = nullptr;
    Quantize quantize_weighted = nullptr;  // with an imatrix
    Dequantize dequantize = nullptr;
    bool own_tables = false;  // the quantizers need none of the lookup tables that ggml builds for the type
};

constexpr int max_types = 64;  // more than GGML_TYPE_COUNT

// By ggml's type id.
struct Table {
    Kernel types[max_types];
    // Of the greatest magnitude, as an integer; beyond 0x7f800000 if there is a NaN.
    std::uint32_t (*greatest_magnitude_bits)(const float * x, std::int64_t n) = nullptr;
};

}  // namespace phiggml::kernels
