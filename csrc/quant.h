// Quant types, and rows of numbers to and from them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "progress.h"

namespace phiggml {

struct QuantTypeInfo {
    int id;
    std::string name;  // as the GGUF community writes it: "Q4_K"
    std::int64_t block_size;
    std::size_t block_bytes;
    bool requires_imatrix;
    bool can_quantize;
    bool can_dequantize;
};

// Facts about a ggml type id, asked of ggml; any id may be given.
bool type_exists(int id);
std::string type_name(int id);
std::int64_t block_size(int id);
std::size_t block_bytes(int id);

// Every type that ggml has, tensors of integers included.
std::vector<QuantTypeInfo> all_types();

// Rows of float32, [n_rows, n_per_row], contiguous.
struct FloatRows {
    const float * data;
    std::int64_t n_rows;
    std::int64_t n_per_row;
};

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

// Whether quantizing can begin at once; otherwise it waits for lookup tables to be built, which takes seconds.
bool tables_built(int type);

// Throws Error::input on what ggml would abort on, or would turn into blocks that are no numbers.
void quantize_rows(const FloatRows & rows, const QuantizeSettings & settings, std::uint8_t * out, Progress & progress);

void dequantize_rows(int type, const std::uint8_t * data, std::int64_t n_rows, std::int64_t n_per_row, float * out,
                     int threads, Progress & progress);

// Quantizes and dequantizes piece by piece, keeping neither result.
QuantizationErrorSums measure_error(const FloatRows & rows, const QuantizeSettings & settings, Progress & progress);

}  // namespace phiggml
