#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

Table make_table() {
    Table table;
    table.greatest_magnitude_bits = greatest_magnitude_bits;
    add_k_offset(table);
    add_k_signed(table);
    add_weighted(table);
    add_legacy(table);
    add_halves(table);
    add_iq1(table);
    add_iq2(table);
    add_iq3(table);
    add_iq4(table);
    add_ternary(table);
    add_microscaling(table);
    add_dequantize_k(table);
    add_dequantize_iq(table);
    add_dequantize_legacy(table);
    return table;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
