// One function for each file of kernels, which enters what that file has.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

std::uint32_t greatest_magnitude_bits(const float * x, std::int64_t n);

void add_k_offset(Table & table);
void add_k_signed(Table & table);
void add_weighted(Table & table);
void add_legacy(Table & table);
void add_halves(Table & table);
void add_iq1(Table & table);
void add_iq2(Table & table);
void add_iq3(Table & table);
void add_iq4(Table & table);
void add_ternary(Table & table);
void add_microscaling(Table & table);
void add_dequantize_k(Table & table);
void add_dequantize_iq(Table & table);
void add_dequantize_legacy(Table & table);

}  // namespace phiggml::kernels::PHIGGML_ISA
