// The search of Q3_K without importances: levels for one step, which are then moved one by one as long as that helps.
#pragma once

#include "kernels/k_offset_blocks.h"
#include "kernels/k_signed_levels.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int q3_max = 4;

// The level of a number that is best for the sums over the others' levels.
PHIGGML_INLINE Floats wanted_level(Floats x, Floats other_lx, Floats other_l2) {
    const Ints level = nearest_int(x * other_l2 / other_lx);
    return to_float(greatest(least(level, all(q3_max - 1)), all(-q3_max)));
}

struct LevelSums {
    Floats lx, l2;

    PHIGGML_INLINE Floats step() const { return select(l2 > 0.0F, lx / l2, all(0.0F)); }

    // Moves one level if that fits better. Tells whether it has moved.
    PHIGGML_INLINE Ints improve(Floats x, Floats & level) {
        const Floats w = x * x, wx = w * x;
        Floats moved_lx = lx - wx * level, moved_l2 = l2 - w * level * level;
        const Floats moved = wanted_level(x, moved_lx, moved_l2);
        const Ints possible = (moved_lx > 0.0F) & (moved != level);
        moved_lx += wx * moved;
        moved_l2 += w * moved * moved;
        const Ints fits_better = moved_lx * moved_lx * l2 > lx * lx * moved_l2;
        const Ints better = possible & (moved_l2 > 0.0F) & fits_better;
        level = select(better, moved, level);
        lx = select(better, moved_lx, lx);
        l2 = select(better, moved_l2, l2);
        return better;
    }
};

struct Q3Batch : SignedBatch {
    const float * rows;       // of the batch's super-blocks
    LevelSums sums[n_parts];  // before any level has moved
    Ints restless[n_parts];   // where some level may move
};

PHIGGML_INLINE Floats first_level(Floats inverse, Floats x) {
    return SignedLevels<q3_max>().template round<0>(inverse * x);
}

// The step that puts the greatest number on the last level.
PHIGGML_INLINE void fit_peak(Q3Batch & batch, int j) {
    const Floats * x = batch.x + j * part;
    SignedFit & fit = batch.fits[j];
    fit.peak = find_peak<part>(x);
    fit.inverse = -1.0F * q3_max / fit.peak.number;
    Floats level[part], lx[part], l2[part];
    LevelSums sums{};
    for (int i = 0; i < part; ++i) {
        level[i] = first_level(fit.inverse, x[i]);
        const Floats w = x[i] * x[i];
        lx[i] = w * x[i] * level[i];
        l2[i] = w * level[i] * level[i];
        sums.lx += lx[i];
        sums.l2 += l2[i];
    }
    batch.sums[j] = sums;
    fit.step = select(fit.peak.none, all(0.0F), sums.step());
    Ints restless{};
    for (int i = 0; i < part; ++i) {
        const Floats other_lx = sums.lx - lx[i];
        restless |= (other_lx > 0.0F) & (wanted_level(x[i], other_lx, sums.l2 - l2[i]) != level[i]);
    }
    batch.restless[j] = restless & ~fit.peak.none;
}

// Sub-blocks of all lanes and parts, by number: part * lanes + lane.
struct Chosen {
    std::int32_t numbers[n_parts * lanes];
    int n = 0;

    PHIGGML_INLINE void add(int j, Ints mask, std::int64_t n_lanes) {
        for (int lane = 0; lane < n_lanes; ++lane) {
            numbers[n] = j * lanes + lane;
            n -= mask[lane];
        }
    }
};

// Sub-blocks that are refined side by side, so that one goes on while another waits for its sums.
constexpr int refined_at_once = 4;

struct Refinement {
    Floats x[refined_at_once][part], level[refined_at_once][part];
    LevelSums sums[refined_at_once];

    // Spare lanes repeat the last sub-block.
    PHIGGML_INLINE void take(const Q3Batch & batch, int way, const std::int32_t * numbers, int n) {
        const float * rows[lanes];
        float inverses[lanes], lx[lanes], l2[lanes];
        for (int lane = 0; lane < lanes; ++lane) {
            const int number = numbers[lane < n ? lane : n - 1], j = number / lanes, from = number % lanes;
            rows[lane] = batch.rows + from * QK_K + j * part;
            inverses[lane] = batch.fits[j].inverse[from];
            lx[lane] = batch.sums[j].lx[from];
            l2[lane] = batch.sums[j].l2[from];
        }
        transpose_rows(rows, part, x[way]);
        const Floats inverse = load(inverses);
        sums[way] = {load(lx), load(l2)};
        for (int i = 0; i < part; ++i) {
            level[way][i] = first_level(inverse, x[way][i]);
        }
    }

    // A sub-block none of whose levels moves stays as it is, whether it takes part again or not.
    PHIGGML_INLINE void run() {
        for (int round = 0; round < 5; ++round) {
            Ints moved{};
            for (int i = 0; i < part; ++i) {
                for (int way = 0; way < refined_at_once; ++way) {
                    moved |= sums[way].improve(x[way][i], level[way][i]);
                }
            }
            if (!any(moved)) {
                break;
            }
        }
    }
};

// Refines the steps of the chosen sub-blocks, or gives their levels: 16 bytes for each number.
void refine(Q3Batch & batch, const Chosen & chosen, std::uint8_t * levels) {
    constexpr int group = refined_at_once * lanes;
    for (int first = 0; first < chosen.n; first += group) {
        Refinement refinement;
        const int n = chosen.n - first < group ? chosen.n - first : group;
        for (int way = 0; way < refined_at_once; ++way) {
            const int at = way * lanes < n ? way * lanes : 0;
            refinement.take(batch, way, chosen.numbers + first + at, n - at);
        }
        refinement.run();
        float steps[group];
        for (int way = 0; way < refined_at_once; ++way) {
            store(steps + way * lanes, refinement.sums[way].step());
        }
        for (int i = 0; i < n; ++i) {
            const int number = chosen.numbers[first + i], way = i / lanes, lane = i % lanes;
            if (levels == nullptr) {
                batch.fits[number / lanes].step[number % lanes] = steps[i];
                continue;
            }
            for (int k = 0; k < part; ++k) {
                levels[number * part + k] = static_cast<std::uint8_t>(refinement.level[way][k][lane] + q3_max);
            }
        }
    }
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
