// The search for the lattice points nearest to the groups of a batch.
#pragma once

#include "kernels/iq2_batch.h"

namespace phiggml::kernels::PHIGGML_ISA::iq2 {

// Lane j has the value of lane first + j / 4.
PHIGGML_INLINE Floats four_of_each(Floats v, int first) {
    Ints index;
    for (int lane = 0; lane < lanes; ++lane) {
        index[lane] = lane / 4;
    }
    index += first;
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), v);
#else
    return _mm256_permutevar8x32_ps(v, reinterpret_cast<__m256i>(index));
#endif
}

// The levels of four scales: lane 4 * j + l has level l of scale j.
PHIGGML_INLINE Floats times_levels(Floats scales) {
    Floats levels;
    for (int lane = 0; lane < lanes; ++lane) {
        levels[lane] = static_cast<float>(2 * (lane % 4) + 1);
    }
    return scales * levels;
}

// Searches one group of one lane at `pack` scales at once, candidates first, first + 1...
PHIGGML_INLINE void search_scales(const Batch & batch, const Neighbours & neighbours, int k, int lane, Floats levels,
                                  Codes * codes) {
    Floats terms[8];
    for (int i = 0; i < 8; ++i) {
        const Floats difference = levels - all(batch.x[8 * k + i][lane]);
        terms[i] = all(batch.root[8 * k + i][lane]) * difference * difference;
    }
    std::int32_t lists[pack];
    for (int j = 0; j < pack; ++j) {
        lists[j] = neighbours.lists[codes[j].wanted[k][lane]];
    }
    const Ints word = find_nearest(terms, neighbours, lists);
    for (int j = 0; j < pack; ++j) {
        codes[j].found[k][lane] = word[4 * j] & 0xffff;
    }
}

// Searches one group of every lane at the lane's scale.
PHIGGML_INLINE void search_lanes(const Batch & batch, const Neighbours & neighbours, int k, Floats scale,
                                 Codes & codes) {
    for (int first = 0; first < lanes; first += pack) {
        const Floats levels = times_levels(four_of_each(scale, first));
        Floats terms[8];
        for (int i = 0; i < 8; ++i) {
            const Floats difference = levels - four_of_each(load(batch.x[8 * k + i]), first);
            terms[i] = four_of_each(load(batch.root[8 * k + i]), first) * difference * difference;
        }
        std::int32_t lists[pack];
        for (int j = 0; j < pack; ++j) {
            lists[j] = neighbours.lists[codes.wanted[k][first + j]];
        }
        const Ints word = find_nearest(terms, neighbours, lists);
        for (int j = 0; j < pack; ++j) {
            codes.found[k][first + j] = word[4 * j] & 0xffff;
        }
    }
}

// ggml's own search, of its whole list.
inline std::int32_t search_all(const phiggml_lattice & lattice, const Batch & batch, int k, int lane, float scale,
                               std::int32_t wanted) {
    if (lattice.map[wanted] >= 0) {
        return wanted;
    }
    const std::uint16_t * list = lattice.neighbours - lattice.map[wanted] - 1;
    const auto * grid = static_cast<const std::int8_t *>(lattice.grid);
    float shortest = 3.4028234e38F;
    int nearest = list[1];
    for (int j = 1; j <= list[0]; ++j) {
        float distance = 0;
        for (int i = 0; i < 8; ++i) {
            const float difference = scale * static_cast<float>(grid[8 * list[j] + i]) - batch.x[8 * k + i][lane];
            distance += batch.root[8 * k + i][lane] * difference * difference;
        }
        if (distance < shortest) {
            shortest = distance;
            nearest = list[j];
        }
    }
    return code_of<8, 2>(grid + 8 * nearest);
}

// Searches again where the shortened lists may lack the nearest.
template <class Type>
inline void search_unsure(const phiggml_lattice & lattice, const Batch & batch, const float * scale, Codes & codes) {
    for (int k = 0; k < Type::groups; ++k) {
        const Ints unsure = codes.unsure[k] & ~batch.odd & batch.alive;
        if (!any(unsure)) {
            continue;
        }
        for (int lane = 0; lane < lanes; ++lane) {
            if (unsure[lane] != 0) {
                codes.found[k][lane] = search_all(lattice, batch, k, lane, scale[lane], codes.wanted[k][lane]);
            }
        }
    }
}

// Searches every group of every lane at all candidates for the lane's scale.
template <class Type>
inline void search_candidates(const Batch & batch, const Neighbours & neighbours, const phiggml_lattice & lattice,
                              const float (&scales)[max_candidates][lanes], Codes * codes) {
    constexpr int n_packed = Type::n_candidates / pack * pack;
    for (int lane = 0; lane < lanes; ++lane) {
        Floats levels[n_packed / pack];
        for (int c = 0; c < n_packed; c += pack) {
            Floats four;
            for (int j = 0; j < lanes; ++j) {
                four[j] = scales[c + j / 4][lane];
            }
            levels[c / pack] = times_levels(four);
        }
        for (int k = 0; k < Type::groups; ++k) {
            for (int c = 0; c < n_packed; c += pack) {
                search_scales(batch, neighbours, k, lane, levels[c / pack], codes + c);
            }
        }
    }
    for (int c = n_packed; c < Type::n_candidates; ++c) {
        for (int k = 0; k < Type::groups; ++k) {
            search_lanes(batch, neighbours, k, load(scales[c]), codes[c]);
        }
    }
    for (int c = 0; c < Type::n_candidates; ++c) {
        search_unsure<Type>(lattice, batch, scales[c], codes[c]);
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq2
