#include <cfloat>

#include "kernels/iq1_lattice.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

// `lanes` codes.
PHIGGML_INLINE Ints load_codes(const std::uint16_t * from) {
    typedef std::uint16_t Codes __attribute__((vector_size(2 * PHIGGML_LANES)));
    Codes codes;
    std::memcpy(&codes, from, sizeof codes);
    return __builtin_convertvector(codes, Ints);
}

// Four numbers, again and again.
PHIGGML_INLINE Floats repeat_four(const float * from) {
#if defined(__AVX512F__)
    return _mm512_broadcast_f32x4(_mm_loadu_ps(from));
#else
    return _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(from));
#endif
}

// lanes / 4 numbers, each four times.
PHIGGML_INLINE Floats four_of_each(const float * from) {
#if defined(__AVX512F__)
    return _mm512_permutevar_ps(repeat_four(from), _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0));
#else
    return _mm256_set_ps(from[1], from[1], from[1], from[1], from[0], from[0], from[0], from[0]);
#endif
}

// Of the four numbers in each quarter of a table, that which the two low bits of an index say.
PHIGGML_INLINE Floats pick_of_four(Floats table, Ints index) {
#if defined(__AVX512F__)
    return _mm512_permutevar_ps(table, reinterpret_cast<__m512i>(index));
#else
    return _mm256_permutevar_ps(table, reinterpret_cast<__m256i>(index));
#endif
}

PHIGGML_INLINE float least_of_all(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_min_ps(v);
#else
    __m128 least = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    least = _mm_min_ps(least, _mm_movehl_ps(least, least));
    return _mm_cvtss_f32(_mm_min_ss(least, _mm_movehdup_ps(least)));
#endif
}

PHIGGML_INLINE unsigned mask_bits(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#else
    return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#endif
}

// Where in a list the least distance is: each lane knows its least, and in which vector it was.
PHIGGML_INLINE int first_least(Floats distances, Ints vectors) {
    std::int32_t in_vector[lanes];
    store(in_vector, vectors);
    unsigned left = mask_bits(distances == all(least_of_all(distances)));
    int lane = __builtin_ctz(left);
    int first = in_vector[lane] * lanes + lane;
    while ((left &= left - 1) != 0) {
        lane = __builtin_ctz(left);
        const int place = in_vector[lane] * lanes + lane;
        first = place < first ? place : first;
    }
    return first;
}

// What the squares of eight numbers' errors are at each level, weighted.
struct LevelErrors {
    float of[8][4];
};

// Writes them; returns whether each number is nearest to the level that the code has for it.
PHIGGML_INLINE bool weigh_levels(const float * x, const float * weights, float scale, float shift, int code,
                                 LevelErrors & errors) {
    const float values[4] = {shift - 1, shift, shift + 1, shift + 1};
    const Floats scaled = scale * repeat_four(values);
    Ints farther = {};
    for (int i = 0; i < 8; i += lanes / 4) {
        const Floats difference = scaled - four_of_each(x + i);
        const Floats error = four_of_each(weights + i) * difference * difference;
        store(errors.of[i], error);
        Ints levels;
        for (int lane = 0; lane < lanes; ++lane) {
            levels[lane] = 2 * (i + lane / 4);
        }
        farther |= error < pick_of_four(error, all(code) >> levels);
    }
    return !any(farther);
}

}  // namespace

int nearest_iq1_point(const Iq1Lattice & lattice, int code, const float * x, const float * weights, float scale,
                      float shift) {
    LevelErrors errors;
    const int place = lattice.places[code];
    const bool is_near = weigh_levels(x, weights, scale, shift, code, errors);
    const Iq1Neighbours neighbours = is_near ? lattice.near_neighbours(place) : lattice.neighbours(place);
    Floats tables[8];
    for (int i = 0; i < 8; ++i) {
        tables[i] = repeat_four(errors.of[i]);
    }
    Floats best = all(FLT_MAX);
    Ints best_at = {};
    for (int at = 0; at < neighbours.n_vectors; ++at) {
        const Ints codes = load_codes(neighbours.codes + at * lanes);
        Floats distance = pick_of_four(tables[0], codes);
        for (int i = 1; i < 8; ++i) {
            distance += pick_of_four(tables[i], codes >> (2 * i));
        }
        best_at = select(distance < best, all(at), best_at);
        best = least(distance, best);
    }
    return neighbours.codes[first_least(best, best_at)];
}

}  // namespace phiggml::kernels::PHIGGML_ISA
