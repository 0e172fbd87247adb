// The first guess of an IQ2_XXS sub-block's scale: levels 0 to 4 of one step, found as ggml finds them.
#pragma once

#include "kernels/iq2_batch.h"

namespace phiggml::kernels::PHIGGML_ISA::iq2 {

constexpr float max_level = 4.0F;

// The sum of the weighted squares of what is left of x after `levels` times a step.
PHIGGML_INLINE Floats error_of(const Batch & batch, Floats inverse_step) {
    const Floats step = 1.0F / inverse_step;
    Floats error = all(0.0F);
    for (int i = 0; i < max_numbers; ++i) {
        const Floats x = load(batch.x[i]);
        const Floats difference = x - step * least(all(max_level), nearest_small(inverse_step * x));
        error += load(batch.weight[i]) * difference * difference;
    }
    return error;
}

// The same for ggml's first try, which keeps levels in bytes: the negative number's level wraps around.
PHIGGML_INLINE Floats first_error(const Batch & batch, Floats inverse_step) {
    const Floats step = 1.0F / inverse_step;
    Floats error = all(0.0F);
    for (int i = 0; i < max_numbers; ++i) {
        const Floats x = load(batch.x[i]);
        const Floats difference = x - step * to_float(nearest_int(inverse_step * x) & 255);
        error += load(batch.weight[i]) * difference * difference;
    }
    return error;
}

PHIGGML_INLINE Floats best_inverse_step(const Batch & batch) {
    Floats best = max_level / batch.max;
    Floats least_error = first_error(batch, best);
    for (int c = -4; c <= 4; ++c) {
        if (c == 0) {
            continue;
        }
        const Floats inverse_step = (0.1F * static_cast<float>(c) + max_level) / batch.max;
        const Floats error = error_of(batch, inverse_step);
        const Ints better = error < least_error;
        least_error = select(better, error, least_error);
        best = select(better, inverse_step, best);
    }
    return best;
}

PHIGGML_INLINE Floats as_byte(Floats level) {
    return to_float(to_int(level) & 255);
}

// Moves single levels while that helps; true if it moved any.
PHIGGML_INLINE bool improve(const Batch & batch, float (&levels)[max_numbers][lanes], Sums & sums) {
    Ints changed = all(0);
    for (int i = 0; i < max_numbers; ++i) {
        const Floats x = load(batch.x[i]), w = load(batch.weight[i]), level = load(levels[i]);
        const Floats wx = w * x;
        Floats qx = sums.qx - wx * level;
        Floats q2 = sums.q2 - w * level * level;
        const Ints moved_level = least(all(4), nearest_int(x * q2 / qx));
        const Floats moved = to_float(moved_level);
        const Ints differs = (qx > 0.0F) & (q2 > 0.0F) & (moved != level);
        if (!any(differs)) {
            continue;
        }
        qx += wx * moved;
        q2 += w * moved * moved;
        const Ints better = differs & (qx * qx * sums.q2 > sums.qx * sums.qx * q2);
        sums.qx = select(better, qx, sums.qx);
        sums.q2 = select(better, q2, sums.q2);
        store(levels[i], select(better, to_float(moved_level & 255), level));
        changed |= better;
    }
    return any(changed);
}

// 0 where no step serves.
inline Floats guess_step(const Batch & batch) {
    const Floats inverse_step = best_inverse_step(batch);
    alignas(64) float levels[max_numbers][lanes];
    Sums sums = {all(0.0F), all(0.0F)};
    for (int i = 0; i < max_numbers; ++i) {
        const Floats x = load(batch.x[i]), w = load(batch.weight[i]);
        const Floats level = least(all(max_level), nearest_small(inverse_step * x));
        sums.qx += w * x * level;
        sums.q2 += w * level * level;
        store(levels[i], as_byte(level));
    }
    for (int round = 0; round < 5 && improve(batch, levels, sums); ++round) {
    }
    return select(sums.q2 > 0.0F, sums.qx / sums.q2, all(0.0F));
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq2
