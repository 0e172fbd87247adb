#include "quant_product.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "error.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "magnitude.h"
#include "quant_type.h"
#include "threads.h"

namespace phiggml {

namespace {

constexpr std::int64_t most_vectors = 512;           // held in ggml's own form at a time
constexpr std::int64_t most_vector_bytes = 1 << 25;  // likewise, where they are long
constexpr std::int64_t converted_together = 16;
constexpr std::int64_t stretch = 256;
constexpr std::int64_t piece_products = 1 << 21;
constexpr std::int64_t wide = 8;         // from so many vectors on ggml multiplies in tiles
constexpr std::int64_t tile_rows = 256;  // of these many rows
constexpr std::int64_t chunk_rows = 16;

ggml_backend_dev_t cpu_device() {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        throw Error(ErrorKind::device, "matmul: no CPU module is loaded. Call phiggml.devices() first.");
    }
    return device;
}

// One thread's way into the CPU module: a backend, and memory for graphs of one node.
class Worker {
public:
    Worker() : arena_(n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false)) {
        const ggml_backend_dev_t device = cpu_device();
        backend_.reset(ggml_backend_dev_init(device, nullptr));
        const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
        if (!backend_ || set_threads == nullptr) {
            throw Error(ErrorKind::device, "matmul: the CPU module does not start.");
        }
        set_threads(backend_.get(), 1);
    }

    // Computes the node that build(context) returns.
    template <typename Build>
    void compute(Build && build) {
        const ggml_context_ptr context(ggml_init({arena_.size(), arena_.data(), true}));
        ggml_cgraph * graph = ggml_new_graph_custom(context.get(), n_tensors, false);
        ggml_build_forward_expand(graph, build(context.get()));
        ggml_status status = GGML_STATUS_ALLOC_FAILED;
        try {
            status = ggml_backend_graph_compute(backend_.get(), graph);
        } catch (const std::bad_alloc &) {
            static_cast<void>(backend_.release());  // it would free its work buffer a second time
            throw;
        }
        if (status != GGML_STATUS_SUCCESS) {
            throw std::bad_alloc();
        }
    }

private:
    static constexpr std::size_t n_tensors = 8;

    ggml_backend_ptr backend_;
    std::vector<std::byte> arena_;
};

// As many workers as threads are inside at once; each keeps its buffers from piece to piece.
class Workers {
public:
    template <typename Build>
    void compute(Build && build) {
        std::unique_ptr<Worker> worker = take();
        worker->compute(build);
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(std::move(worker));
    }

private:
    std::unique_ptr<Worker> take() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<Worker> worker = std::move(idle_.back());
                idle_.pop_back();
                return worker;
            }
        }
        return std::make_unique<Worker>();
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<Worker>> idle_;
};

ggml_tensor * tensor_at(ggml_context * context, ggml_type type, std::int64_t n_per_row, std::int64_t n_rows,
                        const void * data) {
    ggml_tensor * tensor = ggml_new_tensor_2d(context, type, n_per_row, n_rows);
    tensor->data = const_cast<void *>(data);
    return tensor;
}

// By a power of two, which float32 does not always hold.
void multiply(float * numbers, std::int64_t n, double factor) {
    if (factor == 1) {
        return;
    }
    const auto narrow = static_cast<float>(factor);
    if (std::isnormal(narrow)) {
        std::transform(numbers, numbers + n, numbers, [=](float number) { return number * narrow; });
    } else {
        std::transform(numbers, numbers + n, numbers,
                       [=](float number) { return static_cast<float>(number * factor); });
    }
}

// The form in which ggml's products with this type take their vectors: asked of the CPU module, which accepts that
// and float32.
ggml_type vector_type(ggml_type type) {
    std::vector<std::byte> arena(4 * ggml_tensor_overhead());
    for (const ggml_type form : {GGML_TYPE_Q8_0, GGML_TYPE_Q8_1, GGML_TYPE_Q8_K, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        if (type == GGML_TYPE_F32) {
            break;  // it accepts BF16 beside its own
        }
        const ggml_context_ptr context(ggml_init({arena.size(), arena.data(), true}));
        const std::int64_t n = std::max(ggml_blck_size(type), ggml_blck_size(form));
        ggml_tensor * rows = ggml_new_tensor_2d(context.get(), type, n, 1);
        ggml_tensor * vector = ggml_new_tensor_2d(context.get(), form, n, 1);
        if (ggml_backend_dev_supports_op(cpu_device(), ggml_mul_mat(context.get(), rows, vector))) {
            return form;
        }
    }
    return GGML_TYPE_F32;
}

void check(const QuantizedRows & rows) {
    if (!type_exists(rows.type) || !quantizable(rows.type)) {
        const std::string name = type_exists(rows.type) ? type_name(rows.type) : std::to_string(rows.type);
        throw Error(ErrorKind::unsupported, "matmul: ggml has no products for rows of " + name +
                                                ". phiggml.quant_types() lists the types that it has some for.");
    }
    if (rows.n_per_row % block_size(rows.type) != 0) {
        throw Error(ErrorKind::input, "matmul: a row of " + std::to_string(rows.n_per_row) +
                                          " numbers is no multiple of the block of " + type_name(rows.type) + ".");
    }
    if (rows.n_per_row > INT_MAX) {
        throw Error(ErrorKind::unsupported, "matmul: rows of " + std::to_string(rows.n_per_row) +
                                                " numbers are longer than ggml's products take, 2147483647.");
    }
}

// Blocks in the middle of somebody's file may lie at any address; ggml reads them where the largest power of two that
// divides their size allows.
bool lies_well(const QuantizedRows & rows) {
    const std::size_t bytes = block_bytes(rows.type);
    const std::size_t alignment = std::min<std::size_t>(bytes & (~bytes + 1), 32);
    return reinterpret_cast<std::uintptr_t>(rows.data) % alignment == 0;
}

// Vectors in the form that products take. Each is scaled by a power of two to a magnitude between 1 and 2, so that the
// half-precision scales of its blocks neither overflow nor fade; products are scaled back.
class Vectors {
public:
    Vectors(ggml_type type, const ValueRows & values) : type_(type), values_(values) {
        const auto bytes = static_cast<std::int64_t>(ggml_row_size(type, values.n_per_row()));
        capacity_ = std::min({std::clamp<std::int64_t>(most_vector_bytes / bytes, 1, most_vectors), values.n_rows()});
        data_.resize(static_cast<std::size_t>(capacity_ * bytes));
        factors_.resize(static_cast<std::size_t>(capacity_));
    }

    std::int64_t capacity() const { return capacity_; }
    ggml_type type() const { return type_; }
    const std::byte * data() const { return data_.data(); }

    // What products with vector v of those that are held are to be multiplied by.
    double factor(std::int64_t v) const { return factors_[static_cast<std::size_t>(v)]; }

    // Holds vectors begin to begin + n.
    void hold(std::int64_t begin, std::int64_t n, int threads, Workers & workers, const Progress & progress) {
        const auto n_pieces = static_cast<std::uint64_t>((n + converted_together - 1) / converted_together);
        share_pieces(n_pieces, threads, progress, [&](std::uint64_t index) {
            const std::int64_t first = static_cast<std::int64_t>(index) * converted_together;
            convert(begin, first, std::min(converted_together, n - first), workers);
        });
    }

private:
    void convert(std::int64_t begin, std::int64_t first, std::int64_t count, Workers & workers) {
        const std::int64_t n = values_.n_per_row();
        std::byte * to = data_.data() + static_cast<std::size_t>(first) * ggml_row_size(type_, n);
        NumberBuffer memory;
        float * numbers = type_ == GGML_TYPE_F32 ? reinterpret_cast<float *>(to) : memory.at_least(count * n);
        read((begin + first) * n, count, numbers);
        for (std::int64_t v = 0; v < count; ++v) {
            factors_[static_cast<std::size_t>(first + v)] = scale(numbers + v * n, n);
        }
        if (type_ == GGML_TYPE_F32) {
            return;
        }
        workers.compute([&](ggml_context * context) {
            ggml_tensor * source = tensor_at(context, GGML_TYPE_F32, n, count, numbers);
            return ggml_cpy(context, source, tensor_at(context, type_, n, count, to));
        });
    }

    // In stretches: where vectors lie side by side, as columns do, a line of the cache serves all that are read
    // together.
    void read(std::int64_t begin, std::int64_t count, float * numbers) const {
        const std::int64_t n = values_.n_per_row();
        NumberBuffer buffer;
        for (std::int64_t at = 0; at < n; at += stretch) {
            const std::int64_t size = std::min(stretch, n - at);
            for (std::int64_t v = 0; v < count; ++v) {
                const float * from = values_.read(begin + v * n + at, size, buffer);
                std::copy(from, from + size, numbers + v * n + at);
            }
        }
    }

    // Divides numbers by a power of two, and returns it.
    static double scale(float * numbers, std::int64_t n) {
        const Magnitude found = magnitude(numbers, n);
        if (!found.finite) {
            throw Error(
                ErrorKind::input,
                "matmul: x holds NaN, infinity or numbers beyond float32, which products would lose. Clean it.");
        }
        const int exponent = found.greatest > 0 ? std::ilogb(found.greatest) : 0;
        multiply(numbers, n, std::ldexp(1.0, -exponent));
        return std::ldexp(1.0, exponent);
    }

    ggml_type type_;
    const ValueRows & values_;
    std::int64_t capacity_;
    std::vector<std::byte> data_;
    std::vector<double> factors_;
};

// Depends on shapes alone.
std::int64_t rows_per_piece(std::int64_t n_per_row, std::int64_t n_vectors) {
    if (n_vectors >= wide) {
        return tile_rows;
    }
    const std::int64_t n = piece_products / (n_per_row * n_vectors);
    return std::max((n + chunk_rows - 1) / chunk_rows, std::int64_t{1}) * chunk_rows;
}

// Products of rows first to first + count with the first n_vectors that are held.
void multiply_piece(const QuantizedRows & rows, std::int64_t first, std::int64_t count, const Vectors & vectors,
                    std::int64_t n_vectors, float * out, Workers & workers) {
    const auto type = static_cast<ggml_type>(rows.type);
    const std::uint8_t * data = rows.data + static_cast<std::size_t>(first) * ggml_row_size(type, rows.n_per_row);
    workers.compute([&](ggml_context * context) {
        ggml_tensor * node =
            ggml_mul_mat(context, tensor_at(context, type, rows.n_per_row, count, data),
                         tensor_at(context, vectors.type(), rows.n_per_row, n_vectors, vectors.data()));
        node->data = out + first;
        node->nb[1] = static_cast<std::size_t>(rows.n_rows) * sizeof(float);
        node->nb[2] = node->nb[3] = node->nb[1] * static_cast<std::size_t>(n_vectors);
        return node;
    });
    for (std::int64_t v = 0; v < n_vectors; ++v) {
        multiply(out + v * rows.n_rows + first, count, vectors.factor(v));
    }
}

}  // namespace

void multiply_rows(const QuantizedRows & given, const ValueRows & values, float * out, int threads,
                   Progress & progress) {
    check(given);
    QuantizedRows rows = given;
    if (rows.n_per_row == 0) {
        std::fill(out, out + rows.n_rows * values.n_rows(), 0.0F);
    }
    if (rows.n_rows == 0 || rows.n_per_row == 0 || values.n_rows() == 0) {
        return;
    }
    const auto type = static_cast<ggml_type>(rows.type);
    std::vector<std::uint8_t> copy;
    if (!lies_well(rows)) {
        copy.assign(rows.data, rows.data + static_cast<std::size_t>(rows.n_rows) * ggml_row_size(type, rows.n_per_row));
        rows.data = copy.data();
    }
    Workers workers;
    Vectors vectors(vector_type(type), values);
    for (std::int64_t begin = 0; begin < values.n_rows(); begin += vectors.capacity()) {
        const std::int64_t n_vectors = std::min(vectors.capacity(), values.n_rows() - begin);
        vectors.hold(begin, n_vectors, threads, workers, progress);
        const std::int64_t step = rows_per_piece(rows.n_per_row, n_vectors);
        const auto n_pieces = static_cast<std::uint64_t>((rows.n_rows + step - 1) / step);
        share_pieces(n_pieces, threads, progress, [&](std::uint64_t index) {
            const std::int64_t first = static_cast<std::int64_t>(index) * step;
            multiply_piece(rows, first, std::min(step, rows.n_rows - first), vectors, n_vectors,
                           out + begin * rows.n_rows, workers);
        });
    }
}

}  // namespace phiggml
