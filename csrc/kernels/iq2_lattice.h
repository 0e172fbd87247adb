// Searches among the neighbours of a point off ggml's lattices, which list what may be nearest by the point's levels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels/blocks.h"
#include "kernels/made_once.h"
#include "upstream/ggml_quants.h"

namespace phiggml::kernels::PHIGGML_ISA::iq2 {

constexpr int chunk = 4;             // a list comes in chunks of so many neighbours, the last one repeated
constexpr int pack = lanes / chunk;  // so many lists are walked at once

// A point's code has the level of each number in level_bits, the first in the lowest. A word of a list is a neighbour's
// place in ggml's list << 16 | its code. The list of a point on the lattice is that point.
struct Neighbours {
    std::int32_t * lists = nullptr;  // by code: first chunk << 8 | number of chunks
    std::int32_t * words = nullptr;

    Neighbours() = default;
    Neighbours(const Neighbours &) = delete;
    Neighbours & operator=(const Neighbours &) = delete;
    ~Neighbours() {
        std::free(lists);
        std::free(words);
    }
};

// a's error is never less than b's, at any number that rounds to `level`, if b lies between the two.
PHIGGML_INLINE bool is_between(int level, int b, int a) {
    return level <= a ? level <= b && b <= a : a <= b && b <= level;
}

template <int dims, int level_bits>
inline bool is_beaten(int code, int a, const std::int32_t * kept, int n_kept) {
    constexpr int mask = (1 << level_bits) - 1;
    for (int j = 0; j < n_kept; ++j) {
        bool beaten = true;
        for (int i = 0; i < dims && beaten; ++i) {
            const int shift = level_bits * i;
            beaten = is_between(code >> shift & mask, kept[j] >> shift & mask, a >> shift & mask);
        }
        if (beaten) {
            return true;
        }
    }
    return false;
}

template <int dims, int level_bits>
inline int code_of(const std::int8_t * point) {
    int code = 0;
    for (int i = 0; i < dims; ++i) {
        code |= (point[i] - 1) / 2 << level_bits * i;
    }
    return code;
}

// Writes the neighbours of a code that can win: one is left out where an earlier one is as near in every number.
// Both are as near after rounding too, as floating-point operations are monotonic, so long as each number lies clearly
// on its level's side of the middle between two levels. Returns the number of chunks.
template <int dims, int level_bits>
inline int write_list(const phiggml_lattice & lattice, int code, std::int32_t * words) {
    int n = 0;
    if (lattice.map[code] >= 0) {
        words[n++] = code;
    } else {
        const std::uint16_t * list = lattice.neighbours - lattice.map[code] - 1;
        for (int j = 1; j <= list[0]; ++j) {
            const int a = code_of<dims, level_bits>(static_cast<const std::int8_t *>(lattice.grid) + dims * list[j]);
            if (!is_beaten<dims, level_bits>(code, a, words, n)) {
                words[n] = n << 16 | a;
                ++n;
            }
        }
    }
    for (; n % chunk != 0; ++n) {
        words[n] = words[n - 1];
    }
    return n / chunk;
}

// Of points with `n_levels` levels in each number. Null where there is no memory.
template <int dims, int level_bits, int n_levels>
inline const Neighbours * make_neighbours(const phiggml_lattice & lattice) {
    constexpr int n_codes = 1 << dims * level_bits;
    constexpr int mask = (1 << level_bits) - 1;
    const auto is_code = [](int code) {
        for (int i = 0; i < dims; ++i) {
            if ((code >> level_bits * i & mask) >= n_levels) {
                return false;
            }
        }
        return true;
    };
    std::size_t n_words = 0;
    for (int code = 0; code < n_codes; ++code) {
        if (is_code(code)) {
            const int at = lattice.map[code];
            n_words += chunk + (at >= 0 ? 1 : lattice.neighbours[-at - 1]);
        }
    }
    auto * made = new (std::nothrow) Neighbours;
    if (made == nullptr) {
        return nullptr;
    }
    made->lists = static_cast<std::int32_t *>(std::calloc(n_codes, sizeof(std::int32_t)));
    made->words = static_cast<std::int32_t *>(std::malloc(n_words * sizeof(std::int32_t)));
    if (made->lists == nullptr || made->words == nullptr) {
        delete made;
        return nullptr;
    }
    int first = 0;
    for (int code = 0; code < n_codes; ++code) {
        if (is_code(code)) {
            const int n_chunks = write_list<dims, level_bits>(lattice, code, made->words + chunk * first);
            made->lists[code] = first << 8 | n_chunks;
            first += n_chunks;
        }
    }
    return made;
}

// table[level & 3] in each lane, of the four numbers that its own quarter (half, on AVX2) of the table has.
PHIGGML_INLINE Floats pick(Floats table, Ints level) {
#if defined(__AVX512F__)
    return _mm512_permutevar_ps(table, reinterpret_cast<__m512i>(level));
#else
    return _mm256_permutevar_ps(table, reinterpret_cast<__m256i>(level));
#endif
}

// One chunk from each address.
PHIGGML_INLINE Ints load_chunks(const std::int32_t * const (&at)[pack]) {
    const auto four = [&](int j) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(at[j])); };
#if defined(__AVX512F__)
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(four(2)), four(3), 1);
    return reinterpret_cast<Ints>(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
#else
    return reinterpret_cast<Ints>(_mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(1), 1));
#endif
}

// Swaps neighbouring lanes, or pairs of lanes, of every four.
template <int order>
PHIGGML_INLINE Floats swap(Floats v) {
#if defined(__AVX512F__)
    return _mm512_permute_ps(v, order);
#else
    return _mm256_permute_ps(v, order);
#endif
}

constexpr int swap_lanes = 0xb1, swap_pairs = 0x4e;

// Of each four lanes the word with the least distance, and of these the least word, in all four.
PHIGGML_INLINE Ints first_nearest(Floats distance, Ints word) {
    Floats shortest = least(swap<swap_lanes>(distance), distance);
    shortest = least(swap<swap_pairs>(shortest), shortest);
    Ints first = select(distance == shortest, word, all(0x7fffffff));
    first = least(bits(swap<swap_lanes>(from_bits(first))), first);
    return least(bits(swap<swap_pairs>(from_bits(first))), first);
}

// The sum of the errors of the points of four levels, in order, by terms[i][level].
PHIGGML_INLINE Floats distance_of(const Floats (&terms)[8], Ints word) {
    Floats sum = pick(terms[0], word);
    for (int i = 1; i < 8; ++i) {
        sum += pick(terms[i], word >> 2 * i);
    }
    return sum;
}

// Walks `pack` lists of points of 8 numbers and up to 4 levels at once, each in its four lanes: the word of the nearest
// in all four, the first of those that are as near.
PHIGGML_INLINE Ints find_nearest(const Floats (&terms)[8], const Neighbours & neighbours,
                                 const std::int32_t (&lists)[pack]) {
    const std::int32_t *at[pack], *last[pack];
    int n = 0;
    for (int j = 0; j < pack; ++j) {
        const int n_chunks = lists[j] & 255;
        at[j] = neighbours.words + chunk * (lists[j] >> 8);
        last[j] = at[j] + chunk * (n_chunks - 1);
        n = n < n_chunks ? n_chunks : n;
    }
    Ints best = load_chunks(at);
    Floats shortest = distance_of(terms, best);
    for (; n > 1; --n) {
        for (int j = 0; j < pack; ++j) {
            at[j] = at[j] < last[j] ? at[j] + chunk : last[j];
        }
        const Ints word = load_chunks(at);
        const Floats distance = distance_of(terms, word);
        const Ints nearer = distance < shortest;
        shortest = select(nearer, distance, shortest);
        best = select(nearer, word, best);
    }
    return first_nearest(shortest, best);
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq2
