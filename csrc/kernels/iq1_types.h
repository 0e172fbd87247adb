#pragma once

#include <cstdint>

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

// With an imatrix only.
void quantize_iq1_s(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                    const float * imatrix);

// With an imatrix and without.
void quantize_iq1_m(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row,
                    const float * imatrix);

}  // namespace phiggml::kernels::PHIGGML_ISA
