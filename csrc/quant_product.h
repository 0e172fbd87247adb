// Products of quantized rows with vectors of numbers, by ggml's CPU module.
#pragma once

#include <cstdint>

#include "progress.h"
#include "value_rows.h"

namespace phiggml {

struct QuantizedRows {
    int type;
    const std::uint8_t * data;
    std::int64_t n_rows;
    std::int64_t n_per_row;
};

// out[v][r]: the sum over i of rows[r][i] * vectors[v][i]. The same bits with any number of threads.
// Throws Error::input on vectors that are not finite in float32, Error::unsupported on what ggml has no product for.
void multiply_rows(const QuantizedRows & rows, const ValueRows & vectors, float * out, int threads,
                   Progress & progress);

}  // namespace phiggml
