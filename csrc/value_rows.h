// Rows of numbers of any float type and any strides, read as float32 piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace phiggml {

enum class ValueKind { float32, float16, bfloat16, float64 };

std::size_t value_bytes(ValueKind kind);

// Memory for numbers that is not cleared first, and lies where a vector does not straddle cache lines.
class NumberBuffer {
public:
    float * at_least(std::int64_t n) {
        if (n > size_) {
            const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
            numbers_.reset(static_cast<float *>(::operator new(bytes, alignment)));
            size_ = n;
        }
        return numbers_.get();
    }

private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(float * numbers) const { ::operator delete(numbers, alignment); }
    };

    std::unique_ptr<float, Free> numbers_;
    std::int64_t size_ = 0;
};

class ValueRows {
public:
    // Strides in bytes, one for each axis, of any sign; the last axis is along the rows. The memory is the caller's.
    ValueRows(const void * data, ValueKind kind, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides);

    std::int64_t n_rows() const { return n_rows_; }
    std::int64_t n_per_row() const { return n_per_row_; }

    // The n numbers from number `begin` on, counted row by row: in place where they lie together as float32, else
    // converted to `buffer`, which grows as needed.
    const float * read(std::int64_t begin, std::int64_t n, NumberBuffer & buffer) const;

    // Whether one of these numbers is finite, but not as float32.
    bool overflows(std::int64_t begin, std::int64_t n) const;

private:
    // Calls visit(address, count) for stretches of one row.
    template <typename Visit>
    void stretches(std::int64_t begin, std::int64_t n, Visit && visit) const;
    void convert(const std::byte * from, std::int64_t n, float * to) const;

    const std::byte * data_;
    ValueKind kind_;
    std::vector<std::int64_t> shape_;    // leading axes, those that lie together merged
    std::vector<std::int64_t> strides_;  // theirs
    std::int64_t n_per_row_;
    std::int64_t n_rows_ = 1;
    std::int64_t stride_;    // between numbers of a row
    bool together_ = false;  // all rows lie together
};

}  // namespace phiggml
