// What Q3_K and Q6_K share: a batch of super-blocks, one in each lane, and the levels of the numbers for the rounded
// steps of the sub-blocks, with a super-block's numbers side by side.
#pragma once

#include "kernels/blocks.h"
#include "kernels/k_offset_scales.h"
#include "kernels/signed_search.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace {

constexpr int part = 16;  // numbers in a sub-block
constexpr int n_parts = QK_K / part;

struct SignedBatch {
    Floats x[QK_K];
    SignedFit fits[n_parts];
    // Rounded steps. Where one is zero, the levels of the search stay: factor is its inverse then.
    Floats steps[n_parts], factors[n_parts];
    Ints kept[n_parts];  // bits of a level that are kept: none in sub-blocks that are as good as zero
    Ints careful;        // super-blocks with numbers too great for the quick rounding
};

// The step of greatest magnitude, the first one of several, and its magnitude.
PHIGGML_INLINE Floats greatest_step(const SignedFit * fits, Floats & size) {
    Floats found{};
    size = Floats{};
    for (int j = 0; j < n_parts; ++j) {
        found = select(magnitude(fits[j].step) > size, fits[j].step, found);
        size = greatest(magnitude(fits[j].step), size);
    }
    return found;
}

PHIGGML_INLINE void set_steps(SignedBatch & batch, Floats step, const Ints * multiples) {
    batch.careful = Ints{};
    for (int j = 0; j < n_parts; ++j) {
        const SignedFit & fit = batch.fits[j];
        const Floats rounded = step * to_float(multiples[j]);
        const Ints zero = rounded == 0.0F;
        batch.steps[j] = rounded;
        batch.factors[j] = select(zero, fit.inverse, 1.0F / rounded);
        batch.kept[j] = select(zero & fit.peak.none, all(0), all(0xff));
        batch.careful |= ~zero & ~(fit.peak.magnitude * magnitude(batch.factors[j]) <= 1e6F);
    }
}

// Levels plus n_max, from divisions as ggml does them.
template <int n_max>
void levels_by_division(const float * x, const SignedBatch & batch, int lane, std::uint8_t * levels) {
    for (int i = 0; i < QK_K; i += lanes) {
        const int j = i / part;
        const Floats numbers = load(x + i);
        const float step = batch.steps[j][lane];
        const Ints level = nearest_int(step != 0.0F ? numbers / step : numbers * batch.factors[j][lane]);
        store_bytes(levels + i, (greatest(least(level, all(n_max - 1)), all(-n_max)) + n_max) & batch.kept[j][lane]);
    }
}

// The same by products. Their errors are below 2^-22 of the level: where that could matter, it is done by division.
template <int n_max>
PHIGGML_INLINE void levels_of_super_block(const float * x, const SignedBatch & batch, int lane, std::uint8_t * levels) {
    Floats farthest{};
    for (int i = 0; i < QK_K; i += lanes) {
        const int j = i / part;
        const Floats v = load(x + i) * batch.factors[j][lane];
        const Floats within = greatest(least(v, all(n_max - 1.0F)), all(-1.0F * n_max));
        const Floats shifted = within + rounding_shift;
        farthest = greatest(magnitude(within - (shifted - rounding_shift)), farthest);
        store_bytes(levels + i, (bits(shifted) + n_max) & batch.kept[j][lane]);
    }
    if (batch.careful[lane] != 0 || any(farthest > 0.49998F)) {
        levels_by_division<n_max>(x, batch, lane, levels);
    }
}

}  // namespace
}  // namespace phiggml::kernels::PHIGGML_ISA
