// The search for the scale and the lattice points of a sub-block of 32 numbers, that of IQ3_XXS and of IQ3_S. Each lane
// has a sub-block, but for the search among the neighbours of a point, where each lane has a neighbour.
#pragma once

#include "kernels/iq3_lists.h"

namespace phiggml::kernels::PHIGGML_ISA::iq3 {

constexpr int width = 32;  // numbers of a sub-block
constexpr int n_groups = width / dims;
constexpr int most_tries = 32;
constexpr int pack = lanes / n_levels;  // so many scales are tried in one vector, each with eight lanes

// Row i has number i of every lane's sub-block.
struct alignas(64) Batch {
    float x[width][lanes];  // without their signs, but for those that IQ3_XXS must leave
    float weight[width][lanes];
    float root[width][lanes];  // of the weight
    float greatest[lanes];     // of x
};

// Scales to try, and what they lead to: a code for each group, and then the word that is nearest.
struct alignas(64) Tries {
    int n;  // even
    float inverse[most_tries][lanes];
    float scale[most_tries][lanes];
    std::int32_t words[n_groups][most_tries][lanes];
};

struct Choice {
    Floats scale;
    Ints words[n_groups];
};

// table[index & 7] of each eight lanes; the index has bit 3 set in every second eight lanes.
PHIGGML_INLINE Floats pick(Floats table, Ints index) {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), table);
#else
    return _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(index));
#endif
}

// Of each eight lanes the least in all of them.
PHIGGML_INLINE Floats least_of_eight(Floats v) {
#if defined(__AVX512F__)
    v = _mm512_min_ps(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = _mm512_min_ps(v, _mm512_permute_ps(v, 0x4e));
    return _mm512_min_ps(v, _mm512_permute_ps(v, 0xb1));
#else
    v = _mm256_min_ps(v, _mm256_permute2f128_ps(v, v, 1));
    v = _mm256_min_ps(v, _mm256_permute_ps(v, 0x4e));
    return _mm256_min_ps(v, _mm256_permute_ps(v, 0xb1));
#endif
}

// One bit for each lane.
PHIGGML_INLINE unsigned equal_lanes(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
#else
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
#endif
}

// Eight words from each address, made to indices for `pick`.
PHIGGML_INLINE Ints load_eights(const std::int32_t * const (&from)[pack], int offset) {
    const auto eight = [&](int j) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from[j] + offset)); };
#if defined(__AVX512F__)
    constexpr Ints second_eight = {0,      0,      0,      0,      0,      0,      0,      0,
                                   0x8888, 0x8888, 0x8888, 0x8888, 0x8888, 0x8888, 0x8888, 0x8888};
    return reinterpret_cast<Ints>(_mm512_inserti64x4(_mm512_castsi256_si512(eight(0)), eight(1), 1)) | second_eight;
#else
    return reinterpret_cast<Ints>(eight(0));
#endif
}

// What each level of each number of a group would add to the error, for each of `pack` scales.
struct Terms {
    Floats of[dims];
};

PHIGGML_INLINE Floats error_of(const Terms & terms, Ints words) {
    Floats sum = pick(terms.of[0], words);
    for (int i = 1; i < dims; ++i) {
        sum += pick(terms.of[i], words >> (4 * i));
    }
    return sum;
}

// The first of the nearest among all points that ggml looks at, for scale number `part` of the terms. These come in
// registers, so that the caller need not keep them in memory for the few times that it calls.
__attribute__((noinline)) inline std::int32_t nearest_of_all(Floats term0, Floats term1, Floats term2, Floats term3,
                                                             const Lists & lists, int code, int part) {
    const Terms terms = {{term0, term1, term2, term3}};
    const std::int32_t * words = lists.listed + lists.start[code];
    const int n = lists.start[code + 1] - lists.start[code];
    Floats errors[longest_list / 8];
    Floats shortest = all(__FLT_MAX__);
    for (int from = 0; from < n; from += 8) {
        const std::int32_t * eights[pack];
        for (const std::int32_t *& eight : eights) {
            eight = words + from;
        }
        errors[from / 8] = error_of(terms, load_eights(eights, 0));
        shortest = least(errors[from / 8], shortest);
    }
    shortest = least_of_eight(shortest);
    for (int from = 0; from < n; from += 8) {
        const unsigned found = equal_lanes(errors[from / 8], shortest) >> (8 * part) & 255;
        if (found != 0) {
            return words[from + __builtin_ctz(found)];
        }
    }
    return words[0];
}

// Replaces `pack` codes, which lie `lanes` words apart, by the words of their nearest points.
PHIGGML_INLINE void find_nearest(const Terms & terms, const Lists & lists, std::int32_t * words) {
    const std::int32_t * rows[pack];
    std::int32_t flags = 0;
    for (int j = 0; j < pack; ++j) {
        rows[j] = lists.rows[words[j * lanes] & (n_codes - 1)];
        flags |= words[j * lanes] | rows[j][0];
    }
    if (__builtin_expect((flags & out_of_lists) != 0, 0)) {
        for (int j = 0; j < pack; ++j) {
            words[j * lanes] = nearest_of_all(terms.of[0], terms.of[1], terms.of[2], terms.of[3], lists,
                                              words[j * lanes] & (n_codes - 1), j);
        }
        return;
    }
    const Floats first_half = error_of(terms, load_eights(rows, 0));
    if ((flags & more_than_8) == 0) {
        const unsigned found = equal_lanes(first_half, least_of_eight(first_half));
        for (int j = 0; j < pack; ++j) {
            words[j * lanes] = rows[j][__builtin_ctz(found >> (8 * j))];
        }
        return;
    }
    const Floats second_half = error_of(terms, load_eights(rows, 8));
    const Floats shortest = least_of_eight(least(first_half, second_half));
    const unsigned low = equal_lanes(first_half, shortest), high = equal_lanes(second_half, shortest);
    for (int j = 0; j < pack; ++j) {
        words[j * lanes] = rows[j][__builtin_ctz((low >> (8 * j) & 255) | (high >> (8 * j) & 255) << 8)];
    }
}

// The numbers that the levels stand for, for every eight lanes.
PHIGGML_INLINE Floats odd_numbers() {
    Floats odd;
    for (int lane = 0; lane < lanes; ++lane) {
        odd[lane] = static_cast<float>(2 * (lane % n_levels) + 1);
    }
    return odd;
}

// Rounds the groups of all lanes to codes, for every scale.
inline void round_to_codes(const Batch & batch, Tries & tries) {
    constexpr float to_even = 25165824.0F;  // 1.5 * 2^24: what is added to it is rounded to even integers
    constexpr float nearly_odd = 1 - 2e-4F;
    for (int k = 0; k < n_groups; ++k) {
        for (int t = 0; t < tries.n; ++t) {
            const Floats inverse = load(tries.inverse[t]);
            Ints code{};
            Floats furthest{};
            for (int i = 0; i < dims; ++i) {
                const Floats exact = inverse * load(batch.x[dims * k + i]) - 1.0F;
                const Floats bounded = least(greatest(exact, all(0.0F)), all(2.0F * (n_levels - 1)));
                const Floats twice_level = (bounded + to_even) - to_even;
                furthest = greatest(furthest, magnitude(bounded - twice_level));
                // In the lowest bits of the sum there is the level, in the bits that number i of a code has.
                const auto bit = static_cast<float>(1 << (24 - 3 * i));
                code += bits(twice_level + bit) - bits(all(bit));
            }
            store(tries.words[k][t], code | ((furthest > nearly_odd) & out_of_lists));
        }
    }
}

// Replaces all codes by the words of their nearest points.
inline void find_words(const Batch & batch, const Lists & lists, Tries & tries) {
    const Floats odd = odd_numbers();
    Floats scaled[most_tries / pack];
    for (int lane = 0; lane < lanes; ++lane) {
        for (int t = 0; t < tries.n; t += pack) {
            Floats scale = all(tries.scale[t][lane]);
            if (pack == 2) {
                Ints second{};
                for (int j = n_levels; j < lanes; ++j) {
                    second[j] = -1;
                }
                scale = select(second, all(tries.scale[t + pack - 1][lane]), scale);
            }
            scaled[t / pack] = scale * odd;
        }
        for (int k = 0; k < n_groups; ++k) {
            Floats x[dims], root[dims];
            for (int i = 0; i < dims; ++i) {
                x[i] = all(batch.x[dims * k + i][lane]);
                root[i] = all(batch.root[dims * k + i][lane]);
            }
            for (int t = 0; t < tries.n; t += pack) {
                Terms terms;
                for (int i = 0; i < dims; ++i) {
                    const Floats difference = scaled[t / pack] - x[i];
                    terms.of[i] = root[i] * difference * difference;
                }
                find_nearest(terms, lists, &tries.words[k][t][lane]);
            }
        }
    }
}

// The sums by which ggml judges a scale.
struct Fit {
    Floats xq;
    Floats q2;
};

// Of two tries at once, as the sums of one would wait for each other.
PHIGGML_INLINE void fit(const Batch & batch, const Tries & tries, int t, Fit (&sums)[2]) {
    const Floats odd = odd_numbers();
    sums[0] = sums[1] = Fit{};
    for (int k = 0; k < n_groups; ++k) {
        const Ints words[2] = {load(tries.words[k][t]), load(tries.words[k][t + 1])};
        for (int i = 0; i < dims; ++i) {
            const Floats weight = load(batch.weight[dims * k + i]);
            const Floats weighted = weight * load(batch.x[dims * k + i]);
            for (int j = 0; j < 2; ++j) {
                const Floats q = pick(odd, words[j] >> (4 * i));
                sums[j].xq += weighted * q;
                sums[j].q2 += weight * q * q;
            }
        }
    }
}

PHIGGML_INLINE void set_try(Tries & tries, int t, Floats inverse, Floats scale) {
    store(tries.inverse[t], inverse);
    store(tries.scale[t], scale);
}

// Chooses the best of the scales about greatest / 15, `steps` steps away at most.
inline void search(const Batch & batch, const Lists & lists, int steps, Tries & tries, Choice & choice) {
    const Floats greatest_x = load(batch.greatest);
    const int n = 2 * steps + 1;
    tries.n = n + 1;
    for (int t = 0; t <= n; ++t) {
        const float step = static_cast<float>((t < n ? t : 0) - steps) * 0.2F;
        const Floats inverse = (2 * n_levels - 1 + step) / greatest_x;
        set_try(tries, t, inverse, 1.0F / inverse);
    }
    round_to_codes(batch, tries);
    find_words(batch, lists, tries);
    Floats best{};
    for (int t = 0; t < n; t += 2) {
        Fit sums[2];
        fit(batch, tries, t, sums);
        for (int j = 0; j < 2 && t + j < n; ++j) {
            const Floats xq = sums[j].xq, q2 = sums[j].q2;
            const Ints better = (q2 > 0) & (xq * xq > best * q2);
            choice.scale = select(better, xq / q2, choice.scale);
            best = select(better, choice.scale * xq, best);
            for (int k = 0; k < n_groups; ++k) {
                choice.words[k] = select(better, load(tries.words[k][t + j]), choice.words[k]);
            }
        }
    }
}

// Looks again for the points off the grid, or for all points of a sub-block that has such, by the scale found. Returns
// the lanes of which the scale is out of range for this.
inline Ints refine(const Batch & batch, const Lists & lists, bool all_points, Tries & tries, Choice & choice) {
    Ints off_grid{};
    for (const Ints & words : choice.words) {
        off_grid |= (words & on_grid) == 0;
    }
    Floats extreme{};
    for (const auto & x : batch.x) {
        extreme = greatest(extreme, magnitude(load(x)));
    }
    const Ints refined = off_grid & (choice.scale > 0);
    const Ints safe = refined & (choice.scale > 1e-30F) & (extreme < 1e6F * choice.scale);
    if (any(safe)) {
        const Floats scale = select(safe, choice.scale, all(1.0F));
        tries.n = 2;
        set_try(tries, 0, 1.0F / scale, scale);
        set_try(tries, 1, 1.0F / scale, scale);
        round_to_codes(batch, tries);
        find_words(batch, lists, tries);
        for (int k = 0; k < n_groups; ++k) {
            const Ints kept = all_points ? ~safe : ~safe | ((choice.words[k] & on_grid) != 0);
            const Ints words = select(kept, choice.words[k], load(tries.words[k][0]));
            store(tries.words[k][0], words);
            choice.words[k] = words;
        }
        Fit sums[2];
        fit(batch, tries, 0, sums);
        choice.scale = select(safe & (sums[0].q2 > 0), sums[0].xq / sums[0].q2, choice.scale);
    }
    return (refined & ~safe) | (choice.scale < 0);
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq3
