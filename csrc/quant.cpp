#include "quant.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"
#include "ggml.h"
#include "grid_tables.h"
#include "kernel_set.h"
#include "magnitude.h"
#include "quant_type.h"
#include "threads.h"

namespace phiggml {

namespace {

// Work is handed out in pieces of about this many numbers: small enough to cancel soon and to share evenly.
constexpr std::int64_t piece_numbers = 1 << 17;
// Dequantizing takes so little that smaller ones would not be worth waking a thread for.
constexpr std::int64_t dequantized_numbers = 1 << 18;

// Up to these no type's half-precision scale and no weighted sum can overflow (docs/decisions.md), so only larger
// inputs need their result looked at.
constexpr float safe_magnitude = 16384.0F;
constexpr float safe_importance = 1e20F;

// The grid searches of these types abort the process once their squared sums overflow. Importances times squared
// values stay clear of that by this bound (found by experiment, docs/decisions.md; values beyond 1e7 would
// overflow the half-precision scale anyway).
constexpr double grid_search_bound = 1e15;

// Measuring an error keeps so many pieces' sums at a time.
constexpr std::uint64_t most_sums = 1 << 14;

// These weigh each number by its whole row; the others look no further than their block.
bool weighs_rows(int type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1;
}

std::string text(float number) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%g", static_cast<double>(number));
    return buffer.data();
}

void require_type(int type, bool usable, const char * operation) {
    if (!type_exists(type) || !usable) {
        throw Error(ErrorKind::input, std::string(operation) + ": type id " + std::to_string(type) +
                                          " is no type for this. phiggml.quant_types() lists those that are.");
    }
}

void require_rows(int type, std::int64_t n_per_row, const char * operation) {
    if (n_per_row % block_size(type) != 0) {
        throw Error(ErrorKind::input, std::string(operation) + ": a row of " + std::to_string(n_per_row) +
                                          " numbers is no multiple of " + type_name(type) + "'s block of " +
                                          std::to_string(block_size(type)) +
                                          ". Pad the last axis, or choose a type of "
                                          "smaller blocks.");
    }
}

void to_float32(int type, const std::uint8_t * data, float * out, std::int64_t n) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(out, data, static_cast<std::size_t>(n) * sizeof(float));
        return;
    }
    const auto kernel = kernel_table().types[type].dequantize;
    if (kernel != nullptr) {
        kernel(data, out, n);
    } else {
        ggml_get_type_traits(static_cast<ggml_type>(type))->to_float(data, out, n);
    }
}

// Rounds float32 to half precision or bfloat16, with kernels where there are some.
void to_halves(int type, const float * x, std::uint8_t * out, std::int64_t n) {
    const auto kernel = kernel_table().types[type].quantize;
    if (kernel != nullptr) {
        kernel(x, out, 1, n, nullptr);
    } else {
        ggml_quantize_chunk(static_cast<ggml_type>(type), x, out, 0, 1, n, nullptr);
    }
}

// Numbers up to these do not round to infinity.
constexpr float safe_float16 = 65504.0F;
constexpr float safe_bfloat16 = 3.38e38F;

void check_halves(ValueKind kind, const float * numbers, const std::uint8_t * halves, std::int64_t n) {
    const unsigned infinity = kind == ValueKind::float16 ? 0x7c00U : 0x7f80U;
    for (std::int64_t i = 0; i < n; ++i) {
        std::uint16_t half;
        std::memcpy(&half, halves + 2 * i, sizeof half);
        if ((half & 0x7fffU) == infinity && std::isfinite(numbers[i])) {
            throw Error(ErrorKind::input, std::string("dequantize: numbers are beyond ") +
                                              (kind == ValueKind::float16 ? "float16" : "bfloat16") +
                                              ". Ask for dtype=np.float32.");
        }
    }
}

// Checks the importances once, and returns the greatest of them.
float check_imatrix(const float * imatrix, std::int64_t n) {
    float greatest = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        if (!std::isfinite(imatrix[i]) || imatrix[i] < 0) {
            throw Error(ErrorKind::input, "quantize: imatrix[" + std::to_string(i) + "] is " + text(imatrix[i]) +
                                              ": importances are finite and not negative. Collect them anew.");
        }
        greatest = std::max(greatest, imatrix[i]);
    }
    return greatest;
}

kernels::Quantize kernel_of(const QuantizeSettings & settings) {
    const kernels::Kernel & kernel = kernel_table().types[settings.type];
    return settings.imatrix != nullptr ? kernel.quantize_weighted : kernel.quantize;
}

// Whether ggml's lookup tables are asked for before anything else: a kernel with tables of its own does without.
bool needs_tables(const QuantizeSettings & settings) {
    return kernel_of(settings) == nullptr || !kernel_table().types[settings.type].own_tables;
}

class Quantizer {
public:
    Quantizer(const ValueRows & rows, const QuantizeSettings & settings, const Progress & progress)
        : rows_(rows), settings_(settings), progress_(progress) {
        require_type(settings.type, quantizable(settings.type), "quantize");
        require_rows(settings.type, rows.n_per_row(), "quantize");
        const auto type = static_cast<ggml_type>(settings.type);
        if (ggml_quantize_requires_imatrix(type) && settings.imatrix == nullptr) {
            throw Error(ErrorKind::input, "quantize: " + type_name(settings.type) +
                                              " needs an importance matrix. Pass imatrix=, or choose a type whose "
                                              "requires_imatrix is False.");
        }
        if (settings.imatrix != nullptr) {
            // A copy, which no other thread can change once it is checked.
            importances_.assign(settings.imatrix, settings.imatrix + rows.n_per_row());
            settings_.imatrix = importances_.data();
            greatest_importance_ = check_imatrix(settings_.imatrix, rows.n_per_row());
        }
        kernel_ = kernel_of(settings);
        share_out();
        if (n_pieces_ > 0 && needs_tables(settings)) {
            await_tables(settings.type, progress);
        }
    }

    std::uint64_t n_pieces() const { return n_pieces_; }
    std::int64_t begin(std::uint64_t index) const {
        const auto i = static_cast<std::int64_t>(index);
        return i / pieces_per_extent_ * extent_ + i % pieces_per_extent_ * piece_;
    }
    std::int64_t size(std::uint64_t index) const {
        return std::min(piece_, extent_ - static_cast<std::int64_t>(index) % pieces_per_extent_ * piece_);
    }
    // Where they are, if they can be: a thread that changes them meanwhile spoils its own blocks, but a search in a
    // grid, which aborts on numbers that are too large for it, has a copy.
    const float * values(std::uint64_t index, NumberBuffer & buffer) const {
        const float * found = rows_.read(begin(index), size(index), buffer);
        if (found == buffer.at_least(0) || !searches_grid(settings_.type)) {
            return found;
        }
        float * const copy = buffer.at_least(size(index));
        std::copy(found, found + size(index), copy);
        return copy;
    }
    std::size_t bytes(std::int64_t n) const {
        return static_cast<std::size_t>(n / block_size(settings_.type)) * block_bytes(settings_.type);
    }

    void quantize(std::uint64_t index, const float * values, std::uint8_t * out) const {
        const std::int64_t n = size(index);
        const Magnitude input = magnitude(values, n);
        check_input(index, input);
        const bool weighted = settings_.imatrix != nullptr;
        const std::int64_t n_per_row = weighted ? std::min(n, rows_.n_per_row()) : n;
        const float * imatrix = weighted ? settings_.imatrix + begin(index) % rows_.n_per_row() : nullptr;
        const bool safe =
            input.finite && input.greatest <= safe_magnitude && (!weighted || greatest_importance_ <= safe_importance);
        if (safe && kernel_ != nullptr) {
            kernel_(values, out, n / n_per_row, n_per_row, imatrix);
        } else {
            await_tables(settings_.type, progress_);
            ggml_quantize_chunk(static_cast<ggml_type>(settings_.type), values, out, 0, n / n_per_row, n_per_row,
                                imatrix);
        }
        if (input.finite && !safe) {
            check_result(out, n, input.greatest);
        }
    }

private:
    // Cuts the array into pieces of whole blocks. Importances repeat with each row, so pieces are then whole rows or,
    // of a long one, parts; without them a piece may span rows in any way.
    void share_out() {
        const std::int64_t n = rows_.n_rows() * rows_.n_per_row();
        if (n == 0) {
            return;
        }
        const bool weighted = settings_.imatrix != nullptr;
        const bool in_parts = rows_.n_per_row() > piece_numbers && !weighs_rows(settings_.type);
        const std::int64_t unit = weighted && !in_parts ? rows_.n_per_row() : block_size(settings_.type);
        piece_ = std::max<std::int64_t>(1, piece_numbers / unit) * unit;
        extent_ = weighted && in_parts ? rows_.n_per_row() : n;
        pieces_per_extent_ = (extent_ + piece_ - 1) / piece_;
        n_pieces_ = static_cast<std::uint64_t>(n / extent_ * pieces_per_extent_);
    }

    void check_input(std::uint64_t index, const Magnitude & input) const {
        const bool grid = searches_grid(settings_.type);
        if (!input.finite && rows_.overflows(begin(index), size(index))) {
            throw Error(ErrorKind::input, "quantize: x holds values beyond float32. Scale it down.");
        }
        if (!input.finite && (!settings_.allow_nonfinite || grid)) {
            throw Error(
                ErrorKind::input,
                "quantize: x holds NaN or infinity, " +
                    (grid ? "which " + type_name(settings_.type) + " cannot hold. Clean it, or choose another type."
                          : std::string("and the blocks that hold them would be lost. Clean it, or pass "
                                        "nonfinite=\"allow\".")));
        }
        const double square = static_cast<double>(input.greatest) * input.greatest;
        if (grid && square * std::max(greatest_importance_, 1.0F) > grid_search_bound) {
            throw Error(ErrorKind::input, "quantize: " + limits(input.greatest) + " overflow the search of " +
                                              type_name(settings_.type) + ". Scale them down, or choose another type.");
        }
    }

    void check_result(const std::uint8_t * data, std::int64_t n, float greatest) const {
        NumberBuffer result;
        to_float32(settings_.type, data, result.at_least(n), n);
        if (!magnitude(result.at_least(n), n).finite) {
            throw Error(ErrorKind::input, "quantize: " + limits(greatest) + " overflow the range of " +
                                              type_name(settings_.type) + ". Scale them down, or choose BF16 or F32.");
        }
    }

    std::string limits(float greatest) const {
        const std::string values = "values up to " + text(greatest);
        return settings_.imatrix == nullptr ? values : values + " with importances up to " + text(greatest_importance_);
    }

    const ValueRows & rows_;
    QuantizeSettings settings_;
    std::vector<float> importances_;
    const Progress & progress_;
    kernels::Quantize kernel_ = nullptr;
    float greatest_importance_ = 1;
    std::int64_t piece_ = 0;
    std::int64_t extent_ = 0;  // what pieces do not reach across: a row, or the whole array
    std::int64_t pieces_per_extent_ = 0;
    std::uint64_t n_pieces_ = 0;
};

// Rounds numbers to another kind. Throws Error::input where one is beyond it.
void convert(ValueKind kind, const float * numbers, void * out, std::int64_t n) {
    if (kind == ValueKind::float64) {
        std::copy(numbers, numbers + n, static_cast<double *>(out));
        return;
    }
    const int type = kind == ValueKind::float16 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
    auto * halves = static_cast<std::uint8_t *>(out);
    to_halves(type, numbers, halves, n);
    const Magnitude found = magnitude(numbers, n);
    if (!found.finite || found.greatest > (kind == ValueKind::float16 ? safe_float16 : safe_bfloat16)) {
        check_halves(kind, numbers, halves, n);
    }
}

void require_finite(const float * numbers, std::int64_t n) {
    if (!magnitude(numbers, n).finite) {
        throw Error(ErrorKind::input, "quantize: it holds NaN or infinity. Repair the source first.");
    }
}

QuantizationErrorSums error_sums(const float * values, const float * results, std::int64_t n) {
    QuantizationErrorSums sums;
    for (std::int64_t i = 0; i < n; ++i) {
        const double value = values[i];
        const double result = results[i];
        const double difference = value - result;
        sums.squared_error += difference * difference;
        sums.squared_value += value * value;
        sums.squared_result += result * result;
        sums.product += value * result;
        sums.max_abs = std::max(sums.max_abs, std::abs(difference));
    }
    return sums;
}

}  // namespace

void quantize_rows(const ValueRows & rows, const QuantizeSettings & settings, std::uint8_t * out, Progress & progress) {
    const Quantizer quantizer(rows, settings, progress);
    share_pieces(quantizer.n_pieces(), settings.threads, progress, [&](std::uint64_t index) {
        NumberBuffer buffer;
        const float * values = quantizer.values(index, buffer);
        std::uint8_t * const to = out + quantizer.bytes(quantizer.begin(index));
        if (reinterpret_cast<std::uintptr_t>(to) % alignof(ggml_fp16_t) == 0) {
            quantizer.quantize(index, values, to);
        } else {  // blocks begin with a half, which would lie at an odd address
            std::vector<std::uint8_t> blocks(quantizer.bytes(quantizer.size(index)));
            quantizer.quantize(index, values, blocks.data());
            std::copy(blocks.begin(), blocks.end(), to);
        }
    });
}

void dequantize_rows(int type, const std::uint8_t * data, const NumberRows & out, int threads, Progress & progress) {
    require_type(type, type_exists(type) && dequantizable(type), "dequantize");
    require_rows(type, out.n_per_row, "dequantize");
    const std::int64_t n = out.n_rows * out.n_per_row;
    const std::int64_t piece = dequantized_numbers / block_size(type) * block_size(type);
    const std::size_t piece_bytes = static_cast<std::size_t>(piece / block_size(type)) * block_bytes(type);
    auto * numbers = static_cast<std::uint8_t *>(out.data);
    share_pieces(static_cast<std::uint64_t>((n + piece - 1) / piece), threads, progress, [&](std::uint64_t index) {
        const std::int64_t begin = static_cast<std::int64_t>(index) * piece;
        const std::int64_t size = std::min(piece, n - begin);
        std::uint8_t * to = numbers + static_cast<std::size_t>(begin) * value_bytes(out.kind);
        if (out.kind == ValueKind::float32) {
            to_float32(type, data + index * piece_bytes, reinterpret_cast<float *>(to), size);
            return;
        }
        NumberBuffer buffer;
        to_float32(type, data + index * piece_bytes, buffer.at_least(size), size);
        convert(out.kind, buffer.at_least(size), to, size);
    });
}

QuantizationErrorSums measure_error(const ValueRows & rows, const QuantizeSettings & settings, Progress & progress) {
    const Quantizer quantizer(rows, settings, progress);
    QuantizationErrorSums total;
    std::vector<QuantizationErrorSums> sums(std::min(quantizer.n_pieces(), most_sums));
    for (std::uint64_t first = 0; first < quantizer.n_pieces(); first += most_sums) {
        const std::uint64_t n_sums = std::min(most_sums, quantizer.n_pieces() - first);
        share_pieces(n_sums, settings.threads, progress, [&](std::uint64_t at) {
            const std::uint64_t index = first + at;
            const std::int64_t n = quantizer.size(index);
            NumberBuffer buffer, result;
            std::vector<std::uint8_t> bytes(quantizer.bytes(n));
            const float * values = quantizer.values(index, buffer);
            quantizer.quantize(index, values, bytes.data());
            to_float32(settings.type, bytes.data(), result.at_least(n), n);
            sums[at] = error_sums(values, result.at_least(n), n);
        });
        // Summed in order, so that the figures do not depend on the number of threads.
        std::for_each_n(sums.begin(), n_sums, [&](const QuantizationErrorSums & sum) { add_errors(total, sum); });
    }
    return total;
}

void requantize_rows(const BlockRows & rows, const QuantizeSettings & settings, std::uint8_t * out,
                     QuantizationErrorSums * error, Progress & progress) {
    const std::int64_t n_per_row = rows.n_per_row;
    const std::int64_t at_once = std::max<std::int64_t>(1, piece_numbers / n_per_row);
    const auto bytes = [&](int type, std::int64_t n_rows) {
        return static_cast<std::size_t>(n_rows * (n_per_row / block_size(type))) * block_bytes(type);
    };
    NumberBuffer numbers, results;
    for (std::int64_t first = 0; first < rows.n_rows; first += at_once) {
        const std::int64_t n_rows = std::min(at_once, rows.n_rows - first);
        const std::int64_t n = n_rows * n_per_row;
        std::uint8_t * to = out + bytes(settings.type, first);
        float * values = numbers.at_least(n);
        to_float32(rows.type, rows.data + bytes(rows.type, first), values, n);
        const ValueRows together(values, ValueKind::float32, {n_rows, n_per_row},
                                 {n_per_row * std::int64_t{sizeof(float)}, sizeof(float)});
        try {
            quantize_rows(together, settings, to, progress);
        } catch (const Error &) {
            require_finite(values, n);
            throw;
        }
        if (error != nullptr) {
            to_float32(settings.type, to, results.at_least(n), n);
            add_errors(*error, error_sums(values, results.at_least(n), n));
        }
    }
}

void require_finite(int type, const std::uint8_t * data, std::int64_t n) {
    if (!dequantizable(type)) {
        return;
    }
    NumberBuffer numbers;
    for (std::int64_t begin = 0; begin < n; begin += piece_numbers) {
        const std::int64_t size = std::min(piece_numbers, n - begin);
        float * values = numbers.at_least(size);
        to_float32(type, data + static_cast<std::size_t>(begin / block_size(type)) * block_bytes(type), values, size);
        require_finite(values, size);
    }
}

void add_errors(QuantizationErrorSums & sums, const QuantizationErrorSums & more) {
    sums.squared_error += more.squared_error;
    sums.squared_value += more.squared_value;
    sums.squared_result += more.squared_result;
    sums.product += more.product;
    sums.max_abs = std::max(sums.max_abs, more.max_abs);
}

}  // namespace phiggml
