#include "value_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ggml.h"
#include "kernel_set.h"

namespace phiggml {

namespace {

// Numbers that do not lie together are first put together, so many at a time.
constexpr std::int64_t gathered_numbers = 1024;

template <typename Number>
void gather(const std::byte * from, std::int64_t stride, std::int64_t n, Number * to) {
    for (std::int64_t i = 0; i < n; ++i) {
        std::memcpy(to + i, from + i * stride, sizeof(Number));
    }
}

void widen_halves(int type, const std::byte * from, std::int64_t n, float * to) {
    const auto kernel = kernel_table().types[type].dequantize;
    if (kernel != nullptr) {
        kernel(reinterpret_cast<const std::uint8_t *>(from), to, n);
    } else {
        ggml_get_type_traits(static_cast<ggml_type>(type))->to_float(from, to, n);
    }
}

void widen_together(ValueKind kind, const std::byte * from, std::int64_t n, float * to) {
    switch (kind) {
        case ValueKind::float32: std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float)); return;
        case ValueKind::float16: widen_halves(GGML_TYPE_F16, from, n, to); return;
        case ValueKind::bfloat16: widen_halves(GGML_TYPE_BF16, from, n, to); return;
        case ValueKind::float64: break;
    }
    for (std::int64_t i = 0; i < n; ++i) {
        double number;
        std::memcpy(&number, from + i * static_cast<std::int64_t>(sizeof number), sizeof number);
        to[i] = static_cast<float>(number);
    }
}

}  // namespace

std::size_t value_bytes(ValueKind kind) {
    switch (kind) {
        case ValueKind::float32: return 4;
        case ValueKind::float64: return 8;
        default: return 2;
    }
}

ValueRows::ValueRows(const void * data, ValueKind kind, std::vector<std::int64_t> shape,
                     std::vector<std::int64_t> strides)
    : data_(static_cast<const std::byte *>(data)), kind_(kind), n_per_row_(shape.back()), stride_(strides.back()) {
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) {
        n_rows_ *= shape[axis];
        if (shape[axis] == 1) {
            continue;
        }
        if (!shape_.empty() && strides_.back() == strides[axis] * shape[axis]) {
            shape_.back() *= shape[axis];
            strides_.back() = strides[axis];
        } else {
            shape_.push_back(shape[axis]);
            strides_.push_back(strides[axis]);
        }
    }
    const auto bytes = static_cast<std::int64_t>(value_bytes(kind));
    if (n_per_row_ <= 1) {
        stride_ = bytes;
    }
    together_ = stride_ == bytes && (shape_.empty() || (shape_.size() == 1 && strides_[0] == n_per_row_ * bytes));
}

template <typename Visit>
void ValueRows::stretches(std::int64_t begin, std::int64_t n, Visit && visit) const {
    while (n > 0) {
        const std::int64_t count = together_ ? n : std::min(n, n_per_row_ - begin % n_per_row_);
        const std::byte * row = data_;
        std::int64_t index = together_ ? 0 : begin / n_per_row_;
        for (std::size_t axis = shape_.size(); axis-- > 0 && index > 0;) {
            row += index % shape_[axis] * strides_[axis];
            index /= shape_[axis];
        }
        visit(row + (together_ ? begin : begin % n_per_row_) * stride_, count);
        begin += count;
        n -= count;
    }
}

void ValueRows::convert(const std::byte * from, std::int64_t n, float * to) const {
    if (stride_ == static_cast<std::int64_t>(value_bytes(kind_))) {
        widen_together(kind_, from, n, to);
        return;
    }
    alignas(8) std::array<std::byte, gathered_numbers * sizeof(double)> gathered;
    for (std::int64_t done = 0; done < n; done += gathered_numbers) {
        const std::int64_t count = std::min(gathered_numbers, n - done);
        const std::byte * start = from + done * stride_;
        switch (value_bytes(kind_)) {
            case 2: gather(start, stride_, count, reinterpret_cast<std::uint16_t *>(gathered.data())); break;
            case 4: gather(start, stride_, count, reinterpret_cast<std::uint32_t *>(gathered.data())); break;
            default: gather(start, stride_, count, reinterpret_cast<std::uint64_t *>(gathered.data())); break;
        }
        widen_together(kind_, gathered.data(), count, to + done);
    }
}

const float * ValueRows::read(std::int64_t begin, std::int64_t n, NumberBuffer & buffer) const {
    const bool in_row = n == 0 || begin / n_per_row_ == (begin + n - 1) / n_per_row_;
    const std::byte * first = nullptr;
    if (kind_ == ValueKind::float32 && (together_ || (in_row && stride_ == sizeof(float)))) {
        stretches(begin, n, [&](const std::byte * from, std::int64_t) { first = from; });
        if (reinterpret_cast<std::uintptr_t>(first) % alignof(float) == 0) {
            return reinterpret_cast<const float *>(first);
        }
    }
    float * const numbers = buffer.at_least(n);
    float * to = numbers;
    stretches(begin, n, [&](const std::byte * from, std::int64_t count) {
        convert(from, count, to);
        to += count;
    });
    return numbers;
}

bool ValueRows::overflows(std::int64_t begin, std::int64_t n) const {
    if (kind_ != ValueKind::float64) {
        return false;
    }
    bool found = false;
    stretches(begin, n, [&](const std::byte * from, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
            double number;
            std::memcpy(&number, from + i * stride_, sizeof number);
            found = found || (std::isfinite(number) && !std::isfinite(static_cast<float>(number)));
        }
    });
    return found;
}

}  // namespace phiggml
