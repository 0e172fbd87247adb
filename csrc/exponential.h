// e^x for what a token weighs: the same bits on every machine, which a C library does not promise, and in a form that
// compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace phiggml {

// For x <= 0; the relative error is below 1e-7, and what is below 1.7e-38 is 0. The polynomial is that of Cephes' expf.
inline float exponential(float x) {
    constexpr float least = -87.0F, log2_e = 1.44269504F, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
    constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: a sum with it has no fraction, and ends in the integer
    const float y = x < least ? least : x;
    const float shifted = y * log2_e + to_integer;
    const float n = shifted - to_integer;
    const float r = (y - n * ln2_high) - n * ln2_low;
    float p = 1.9875691500E-4F;
    p = p * r + 1.3981999507E-3F;
    p = p * r + 8.3334519073E-3F;
    p = p * r + 4.1665795894E-2F;
    p = p * r + 1.6666665459E-1F;
    p = p * r + 5.0000001201E-1F;
    p = p * (r * r) + r + 1.0F;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127U) << 23U;
    float power_of_two = 0;
    std::memcpy(&power_of_two, &bits, sizeof power_of_two);
    return x < least ? 0.0F : p * power_of_two;
}

}  // namespace phiggml
