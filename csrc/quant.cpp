#include "quant.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>

#include "error.h"
#include "ggml.h"
#include "threads.h"

namespace phiggml {

namespace {

// Work is handed out in pieces of about this many numbers: small enough to cancel soon and to share evenly.
constexpr std::int64_t piece_numbers = 1 << 16;

// Up to these no type's half-precision scale and no weighted sum can overflow (docs/decisions.md), so only larger
// inputs need their result looked at.
constexpr float safe_magnitude = 16384.0F;
constexpr float safe_importance = 1e20F;

// The grid searches of these types abort the process once their squared sums overflow. Importances times squared
// values stay clear of that by this bound (found by experiment, docs/decisions.md; values beyond 1e7 would
// overflow the half-precision scale anyway).
constexpr double grid_search_bound = 1e15;

bool searches_grid(int type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S: return true;
        default: return false;
    }
}

// These weigh each number by its whole row; the others look no further than their block.
bool weighs_rows(int type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1;
}

// ggml builds the lookup tables of a grid type at its first use, which takes seconds and cannot be stopped. So each
// build has a thread of its own that outlives a caller who gives up. Every call into ggml waits for the lock that a
// build holds, hence a call waits first for all that are under way, whatever its type.
class TableBuilds {
public:
    static TableBuilds & instance() {
        static TableBuilds builds;
        return builds;
    }

    bool done(int type) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return (!searches_grid(type) || builds_[static_cast<std::size_t>(type)].valid()) &&
               std::all_of(builds_.begin(), builds_.end(), [](const Build & build) {
                   return !build.valid() || build.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
               });
    }

    void await(int type, const Progress & progress) {
        begin(type);
        while (!done(type)) {
            if (progress.stopped()) {
                throw Cancelled();
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }

private:
    using Build = std::shared_future<void>;

    void begin(int type) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!searches_grid(type) || builds_[static_cast<std::size_t>(type)].valid()) {
            return;
        }
        std::promise<void> promise;
        Build build = promise.get_future().share();
        const auto work = [type](std::promise<void> built) {
            ggml_quantize_init(static_cast<ggml_type>(type));
            built.set_value();
        };
        std::thread(work, std::move(promise)).detach();
        builds_[static_cast<std::size_t>(type)] = std::move(build);
    }

    std::mutex mutex_;
    std::array<Build, GGML_TYPE_COUNT> builds_;
};

std::string text(float number) {
    std::array<char, 32> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%g", static_cast<double>(number));
    return buffer.data();
}

bool quantizable(int id) {
    // Q8_1 and Q8_K hold activations inside products; no file or function takes them as a target.
    if (id == GGML_TYPE_Q8_1 || id == GGML_TYPE_Q8_K) {
        return false;
    }
    return id == GGML_TYPE_F32 || id == GGML_TYPE_F16 || id == GGML_TYPE_BF16 ||
           ggml_is_quantized(static_cast<ggml_type>(id));
}

bool dequantizable(int id) {
    return id == GGML_TYPE_F32 || (quantizable(id) && ggml_get_type_traits(static_cast<ggml_type>(id))->to_float);
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

// The largest magnitude, and whether every number is finite; written so that compilers vectorise it.
struct Magnitude {
    float greatest = 0;
    bool finite = true;
};

Magnitude magnitude(const float * data, std::int64_t n) {
    // The bits of a positive float order as integers do, and those of infinities and NaNs are the greatest.
    std::uint32_t greatest = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, data + i, sizeof bits);
        greatest = std::max(greatest, bits & 0x7fffffffU);
    }
    Magnitude result;
    result.finite = greatest < 0x7f800000U;
    std::memcpy(&result.greatest, &greatest, sizeof greatest);
    return result;
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

class Quantizer {
public:
    Quantizer(const FloatRows & rows, const QuantizeSettings & settings, const Progress & progress)
        : rows_(rows), settings_(settings) {
        require_type(settings.type, quantizable(settings.type), "quantize");
        require_rows(settings.type, rows.n_per_row, "quantize");
        const auto type = static_cast<ggml_type>(settings.type);
        if (ggml_quantize_requires_imatrix(type) && settings.imatrix == nullptr) {
            throw Error(ErrorKind::input, "quantize: " + type_name(settings.type) +
                                              " needs an importance matrix. Pass imatrix=, or choose a type whose "
                                              "requires_imatrix is False.");
        }
        if (settings.imatrix != nullptr) {
            greatest_importance_ = check_imatrix(settings.imatrix, rows.n_per_row);
        }
        share_out();
        if (n_pieces_ > 0) {
            TableBuilds::instance().await(settings.type, progress);
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
    const float * values(std::uint64_t index) const { return rows_.data + begin(index); }
    std::size_t bytes(std::int64_t n) const {
        return static_cast<std::size_t>(n / block_size(settings_.type)) * block_bytes(settings_.type);
    }

    void quantize(std::uint64_t index, std::uint8_t * out) const {
        const std::int64_t n = size(index);
        const Magnitude input = magnitude(values(index), n);
        check_input(input);
        const std::int64_t n_per_row = settings_.imatrix != nullptr ? std::min(n, rows_.n_per_row) : n;
        const float * imatrix =
            settings_.imatrix != nullptr ? settings_.imatrix + begin(index) % rows_.n_per_row : nullptr;
        ggml_quantize_chunk(static_cast<ggml_type>(settings_.type), values(index), out, 0, n / n_per_row, n_per_row,
                            imatrix);
        if (input.finite && (input.greatest > safe_magnitude || greatest_importance_ > safe_importance)) {
            check_result(out, n, input.greatest);
        }
    }

    void dequantize(const std::uint8_t * data, std::int64_t n, float * out) const {
        if (settings_.type == GGML_TYPE_F32) {
            std::memcpy(out, data, static_cast<std::size_t>(n) * sizeof(float));
        } else {
            ggml_get_type_traits(static_cast<ggml_type>(settings_.type))->to_float(data, out, n);
        }
    }

private:
    // Cuts the array into pieces of whole blocks. Importances repeat with each row, so pieces are then whole rows or,
    // of a long one, parts; without them a piece may span rows in any way.
    void share_out() {
        const std::int64_t n = rows_.n_rows * rows_.n_per_row;
        if (n == 0) {
            return;
        }
        const bool weighted = settings_.imatrix != nullptr;
        const bool in_parts = rows_.n_per_row > piece_numbers && !weighs_rows(settings_.type);
        const std::int64_t unit = weighted && !in_parts ? rows_.n_per_row : block_size(settings_.type);
        piece_ = std::max<std::int64_t>(1, piece_numbers / unit) * unit;
        extent_ = weighted && in_parts ? rows_.n_per_row : n;
        pieces_per_extent_ = (extent_ + piece_ - 1) / piece_;
        n_pieces_ = static_cast<std::uint64_t>(n / extent_ * pieces_per_extent_);
    }

    void check_input(const Magnitude & input) const {
        const bool grid = searches_grid(settings_.type);
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
        std::vector<float> result(static_cast<std::size_t>(n));
        dequantize(data, n, result.data());
        if (!magnitude(result.data(), n).finite) {
            throw Error(ErrorKind::input, "quantize: " + limits(greatest) + " overflow the range of " +
                                              type_name(settings_.type) + ". Scale them down, or choose BF16 or F32.");
        }
    }

    std::string limits(float greatest) const {
        const std::string values = "values up to " + text(greatest);
        return settings_.imatrix == nullptr ? values : values + " with importances up to " + text(greatest_importance_);
    }

    FloatRows rows_;
    QuantizeSettings settings_;
    float greatest_importance_ = 1;
    std::int64_t piece_ = 0;
    std::int64_t extent_ = 0;  // what pieces do not reach across: a row, or the whole array
    std::int64_t pieces_per_extent_ = 0;
    std::uint64_t n_pieces_ = 0;
};

}  // namespace

bool type_exists(int id) {
    return id >= 0 && id < GGML_TYPE_COUNT && ggml_blck_size(static_cast<ggml_type>(id)) > 0;
}

std::string type_name(int id) {
    std::string name = ggml_type_name(static_cast<ggml_type>(id));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
    return name;
}

std::int64_t block_size(int id) {
    return ggml_blck_size(static_cast<ggml_type>(id));
}

std::size_t block_bytes(int id) {
    return ggml_type_size(static_cast<ggml_type>(id));
}

std::vector<QuantTypeInfo> all_types() {
    std::vector<QuantTypeInfo> types;
    for (int id = 0; id < GGML_TYPE_COUNT; ++id) {
        if (type_exists(id)) {
            types.push_back({id, type_name(id), block_size(id), block_bytes(id),
                             ggml_quantize_requires_imatrix(static_cast<ggml_type>(id)), quantizable(id),
                             dequantizable(id)});
        }
    }
    return types;
}

bool tables_built(int type) {
    return TableBuilds::instance().done(type);
}

void quantize_rows(const FloatRows & rows, const QuantizeSettings & settings, std::uint8_t * out, Progress & progress) {
    const Quantizer quantizer(rows, settings, progress);
    share_pieces(quantizer.n_pieces(), settings.threads, progress, [&](std::uint64_t index) {
        quantizer.quantize(index, out + quantizer.bytes(quantizer.begin(index)));
    });
}

void dequantize_rows(int type, const std::uint8_t * data, std::int64_t n_rows, std::int64_t n_per_row, float * out,
                     int threads, Progress & progress) {
    require_type(type, type_exists(type) && dequantizable(type), "dequantize");
    require_rows(type, n_per_row, "dequantize");
    const std::int64_t n = n_rows * n_per_row;
    const std::int64_t piece = piece_numbers / block_size(type) * block_size(type);
    const std::size_t row_piece_bytes = static_cast<std::size_t>(piece / block_size(type)) * block_bytes(type);
    const auto to_float = ggml_get_type_traits(static_cast<ggml_type>(type))->to_float;
    share_pieces(static_cast<std::uint64_t>((n + piece - 1) / piece), threads, progress, [&](std::uint64_t index) {
        const std::int64_t begin = static_cast<std::int64_t>(index) * piece;
        const std::int64_t size = std::min(piece, n - begin);
        const std::uint8_t * source = data + index * row_piece_bytes;
        if (type == GGML_TYPE_F32) {
            std::memcpy(out + begin, source, static_cast<std::size_t>(size) * sizeof(float));
        } else {
            to_float(source, out + begin, size);
        }
    });
}

QuantizationErrorSums measure_error(const FloatRows & rows, const QuantizeSettings & settings, Progress & progress) {
    const Quantizer quantizer(rows, settings, progress);
    std::vector<QuantizationErrorSums> sums(quantizer.n_pieces());
    share_pieces(quantizer.n_pieces(), settings.threads, progress, [&](std::uint64_t index) {
        const std::int64_t n = quantizer.size(index);
        std::vector<std::uint8_t> bytes(quantizer.bytes(n));
        std::vector<float> result(static_cast<std::size_t>(n));
        quantizer.quantize(index, bytes.data());
        quantizer.dequantize(bytes.data(), n, result.data());
        QuantizationErrorSums & sum = sums[index];
        const float * values = quantizer.values(index);
        for (std::int64_t i = 0; i < n; ++i) {
            const double value = values[i];
            const double difference = value - result[static_cast<std::size_t>(i)];
            sum.squared_error += difference * difference;
            sum.squared_value += value * value;
            sum.squared_result +=
                static_cast<double>(result[static_cast<std::size_t>(i)]) * result[static_cast<std::size_t>(i)];
            sum.product += value * result[static_cast<std::size_t>(i)];
            sum.max_abs = std::max(sum.max_abs, std::abs(difference));
        }
    });
    // Summed in order, so that the figures do not depend on the number of threads.
    QuantizationErrorSums total;
    for (const QuantizationErrorSums & sum : sums) {
        total.squared_error += sum.squared_error;
        total.squared_value += sum.squared_value;
        total.squared_result += sum.squared_result;
        total.product += sum.product;
        total.max_abs = std::max(total.max_abs, sum.max_abs);
    }
    return total;
}

}  // namespace phiggml
