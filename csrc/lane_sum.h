// A sum in an order that is fixed, so that it is the same on every machine, and that vector units can follow.
#pragma once

#include <array>
#include <cstddef>

namespace phiggml {

class LaneSum {
public:
    void add(const float * values, std::size_t n) {
        std::size_t i = 0;
        for (; i + n_lanes <= n; i += n_lanes) {
            for (std::size_t j = 0; j < n_lanes; ++j) {
                lanes_[j] += static_cast<double>(values[i + j]);
            }
        }
        for (std::size_t j = 0; i < n; ++i, ++j) {
            lanes_[j] += static_cast<double>(values[i]);
        }
    }

    double total() const {
        double sum = 0;
        for (const double lane : lanes_) {
            sum += lane;
        }
        return sum;
    }

private:
    static constexpr std::size_t n_lanes = 8;
    std::array<double, n_lanes> lanes_{};
};

}  // namespace phiggml
