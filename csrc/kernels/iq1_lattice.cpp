#include "kernels/iq1_lattice.h"

#include "kernels/made_once.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int n_points = NGRID_IQ1S;
constexpr int n_shells = 3;  // of neighbours at equal distance that ggml takes
constexpr int greatest_distance = 32;

// The table has the levels less 1, a byte each.
std::uint16_t code_of(std::uint64_t point) {
    unsigned code = 0;
    for (int i = 0; i < 8; ++i) {
        code |= static_cast<unsigned>(static_cast<std::int8_t>(point >> (8 * i)) + 1) << (2 * i);
    }
    return static_cast<std::uint16_t>(code);
}

// Codes with a level 3 come from no number.
bool has_three_levels(int code) {
    return (code & (code >> 1) & 0x5555) == 0;
}

// Levels 0, 1, 2 as bits 00, 01, 11: as many bits differ in two as the levels do.
unsigned to_unary(unsigned code) {
    return code | (code & 0xaaaa) >> 1;
}

// The square of the distance: levels that differ by 2 count four times.
int distance(unsigned unary, unsigned other) {
    const unsigned differences = unary ^ other;
    return __builtin_popcount(differences) + 2 * __builtin_popcount(differences & (differences >> 1) & 0x5555);
}

// Leaves out what an earlier one that stays is never farther than: that lies between it and the code in every level.
// Returns how many stay.
int keep_near(int code, const std::uint16_t * neighbours, int n, std::uint16_t * near) {
    const unsigned from = to_unary(static_cast<unsigned>(code));
    unsigned kept[n_points];
    int n_kept = 0;
    for (int i = 0; i < n; ++i) {
        const unsigned to = to_unary(neighbours[i]);
        bool beaten = false;
        for (int j = 0; j < n_kept && !beaten; ++j) {
            beaten = ((kept[j] ^ from) & ~(from ^ to)) == 0;
        }
        if (!beaten) {
            near[n_kept] = neighbours[i];
            kept[n_kept++] = to;
        }
    }
    return n_kept;
}

}  // namespace

Iq1Lattice::Iq1Lattice() {
    std::uint16_t points[n_points];
    std::memset(places, -1, sizeof places);
    for (int i = 0; i < n_points; ++i) {
        points[i] = code_of(iq1s_grid[i]);
        places[points[i]] = i;
    }
    for (int code = 0; code < n_codes && complete_; ++code) {
        if (has_three_levels(code) && places[code] < 0) {
            list_neighbours(code, points);
        }
    }
}

// Returns the number of vectors.
int Iq1Lattice::append(const std::uint16_t * codes, int n) {
    const int n_vectors = (n + lanes - 1) / lanes;
    complete_ = complete_ && n_vectors_ + n_vectors <= max_vectors;
    for (int i = 0; i < n_vectors * lanes && complete_; ++i) {
        codes_[n_vectors_ * lanes + i] = codes[i < n ? i : n - 1];
    }
    n_vectors_ += n_vectors;
    return n_vectors;
}

// The points in the nearest shells, shell by shell, each in the order of their indices.
void Iq1Lattice::list_neighbours(int code, const std::uint16_t * points) {
    const unsigned unary = to_unary(static_cast<unsigned>(code));
    std::uint8_t distances[n_points];
    int counts[greatest_distance + 1] = {};
    for (int i = 0; i < n_points; ++i) {
        distances[i] = static_cast<std::uint8_t>(distance(unary, to_unary(points[i])));
        ++counts[distances[i]];
    }
    int ends[greatest_distance + 1];
    int n = 0, last = 0;
    for (int shell = 0; shell < n_shells; ++last) {
        ends[last] = n;
        n += counts[last];
        shell += counts[last] > 0;
    }
    std::uint16_t all_of_them[n_points], near[n_points];
    for (int i = 0; i < n_points; ++i) {
        if (distances[i] < last) {
            all_of_them[ends[distances[i]]++] = points[i];
        }
    }
    const int first = n_vectors_;
    const int n_near = append(near, keep_near(code, all_of_them, n, near));
    const int n_all = append(all_of_them, n);
    complete_ = complete_ && n_near < 8 && n_all < 32;
    places[code] = -1 - ((first * 32 + n_all) * 8 + n_near);
}

const Iq1Lattice * iq1_lattice() {
    static const Iq1Lattice * kept = nullptr;
    const Iq1Lattice * lattice = made_once(kept, [] { return new (std::nothrow) const Iq1Lattice; });
    return lattice != nullptr && lattice->is_complete() ? lattice : nullptr;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
