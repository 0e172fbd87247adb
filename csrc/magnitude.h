// How large numbers are, and whether all are finite.
#pragma once

#include <cstdint>

namespace phiggml {

struct Magnitude {
    float greatest = 0;  // of what is finite or not; NaN where there is one
    bool finite = true;
};

Magnitude magnitude(const float * numbers, std::int64_t n);

}  // namespace phiggml
