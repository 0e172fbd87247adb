// Rows of numbers to quantized blocks and back.
#pragma once

#include <cstdint>

#include "progress.h"
#include "value_rows.h"

namespace phiggml {

struct QuantizeSettings {
    int type;
    const float * imatrix = nullptr;  // float32[n_per_row]
    int threads = 1;
    bool allow_nonfinite = false;
};

struct QuantizationErrorSums {
    double squared_error = 0;
    double squared_value = 0;
    double squared_result = 0;
    double product = 0;
    double max_abs = 0;
};

// Throws Error::input on what ggml would abort on, or would turn into blocks that are no numbers.
void quantize_rows(const ValueRows & rows, const QuantizeSettings & settings, std::uint8_t * out, Progress & progress);

// Numbers of another kind than float32 are rounded to nearest even; throws Error::input where that is beyond them.
struct NumberRows {
    void * data;
    ValueKind kind;
    std::int64_t n_rows;
    std::int64_t n_per_row;
};
void dequantize_rows(int type, const std::uint8_t * data, const NumberRows & out, int threads, Progress & progress);

// Rows of blocks of any type, or of numbers that are one.
struct BlockRows {
    int type;
    const std::uint8_t * data;
    std::int64_t n_rows;
    std::int64_t n_per_row;
};

// Rows of one type to rows of another, on this thread, some at a time so that they stay in its cache. Adds up the
// error where sums are given.
void requantize_rows(const BlockRows & rows, const QuantizeSettings & settings, std::uint8_t * out,
                     QuantizationErrorSums * error, Progress & progress);

// Throws Error::input where one of n numbers is not finite, of types that have numbers.
void require_finite(int type, const std::uint8_t * data, std::int64_t n);

void add_errors(QuantizationErrorSums & sums, const QuantizationErrorSums & more);

// Quantizes and dequantizes piece by piece, keeping neither result.
QuantizationErrorSums measure_error(const ValueRows & rows, const QuantizeSettings & settings, Progress & progress);

}  // namespace phiggml
