#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

// The bits of positive floats order as integers do, and those of infinities and NaNs are the greatest.
std::uint32_t greatest_magnitude_bits(const float * x, std::int64_t n) {
    Ints most{}, most_other{};
    std::int64_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        most = greatest(most, bits(load(x + i)) & 0x7fffffff);
        most_other = greatest(most_other, bits(load(x + i + lanes)) & 0x7fffffff);
    }
    most = greatest(most, most_other);
    std::int32_t found = 0;
    for (int lane = 0; lane < lanes; ++lane) {
        found = most[lane] > found ? most[lane] : found;
    }
    for (; i < n; ++i) {
        std::int32_t last;
        std::memcpy(&last, x + i, sizeof last);
        last &= 0x7fffffff;
        found = last > found ? last : found;
    }
    return static_cast<std::uint32_t>(found);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
