#include "magnitude.h"

#include <algorithm>
#include <cstring>

#include "kernel_set.h"

namespace phiggml {

namespace {

// The bits of positive floats order as integers do, and those of infinities and NaNs are the greatest.
std::uint32_t greatest_magnitude_bits(const float * numbers, std::int64_t n) {
    std::uint32_t greatest = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, numbers + i, sizeof bits);
        greatest = std::max(greatest, bits & 0x7fffffffU);
    }
    return greatest;
}

}  // namespace

Magnitude magnitude(const float * numbers, std::int64_t n) {
    const auto kernel = kernel_table().greatest_magnitude_bits;
    const std::uint32_t bits = kernel != nullptr ? kernel(numbers, n) : greatest_magnitude_bits(numbers, n);
    Magnitude result;
    result.finite = bits < 0x7f800000U;
    std::memcpy(&result.greatest, &bits, sizeof bits);
    return result;
}

}  // namespace phiggml
