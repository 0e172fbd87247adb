// ggml's block layouts, and its own quantizer for what a kernel leaves to it.
#pragma once

#include <cstdint>

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"
#include "ggml.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

inline void quantize_by_ggml(ggml_type type, const float * x, void * out, std::int64_t n_rows, std::int64_t n_per_row,
                             const float * imatrix) {
    ggml_quantize_chunk(type, x, out, 0, n_rows, n_per_row, imatrix);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
