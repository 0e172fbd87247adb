// The lattice of IQ1_S and IQ1_M: points of eight levels (0, 1, 2), two bits each in a code.
#pragma once

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

// Neighbours' codes in ggml's order; the last one repeats to fill a vector.
struct Iq1Neighbours {
    const std::uint16_t * codes;
    int n_vectors;
};

struct Iq1Lattice {
    static constexpr int n_codes = 0xaaaa + 1;
    static constexpr int max_vectors = 480000 / lanes;
    static constexpr int first_code = 0;  // of the lattice point 0

    // By code: the index of that lattice point, or less than 0 where there are neighbours instead.
    std::int32_t places[n_codes];

    // All those of a code, and those that can be nearest to numbers none of which is nearer to another level than to
    // that which the code has for it: where an earlier neighbour lies between a code and a later one in every level,
    // its distance is never the greater one, for rounding keeps the order of the terms.
    Iq1Neighbours neighbours(int place) const { return {at(place) + n_near(place) * lanes, (-1 - place) / 8 % 32}; }
    Iq1Neighbours near_neighbours(int place) const { return {at(place), n_near(place)}; }

    Iq1Lattice();
    bool is_complete() const { return complete_; }

private:
    // A place below 0 is -1 - ((first vector * 32 + number of neighbours' vectors) * 8 + that of the near ones).
    const std::uint16_t * at(int place) const { return codes_ + (-1 - place) / 256 * lanes; }
    static int n_near(int place) { return (-1 - place) % 8; }
    int append(const std::uint16_t * codes, int n);
    void list_neighbours(int code, const std::uint16_t * points);

    std::uint16_t codes_[max_vectors * lanes];
    int n_vectors_ = 0;
    bool complete_ = true;
};

// Made at the first call, in a few hundredths of a second; null if the neighbours have no room, or there is no
// memory.
const Iq1Lattice * iq1_lattice();

// The code of that neighbour of a code off the lattice which is nearest to the eight numbers, the first of equal ones.
int nearest_iq1_point(const Iq1Lattice & lattice, int code, const float * x, const float * weights, float scale,
                      float shift);

}  // namespace phiggml::kernels::PHIGGML_ISA
