// Random numbers that a seed fixes, on every machine: the standard fixes the generator, not its distributions.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>

namespace phiggml {

class RandomStream {
public:
    explicit RandomStream(std::uint32_t seed) : generator_(seed) {}

    // Uniform from 0 to below 1.
    double next() {
        constexpr double two_32 = 4294967296.0;
        const auto low = static_cast<double>(generator_());
        const auto high = static_cast<double>(generator_());
        return std::fmin((low + high * two_32) / (two_32 * two_32), below_one);
    }

private:
    static constexpr double below_one = 1.0 - 0x1p-53;
    std::mt19937 generator_;
};

}  // namespace phiggml
