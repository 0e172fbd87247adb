#include "ggml.h"
#include "kernels/families.h"
#include "kernels/iq1_types.h"

namespace phiggml::kernels::PHIGGML_ISA {

void add_iq1(Table & table) {
    table.types[GGML_TYPE_IQ1_S].quantize_weighted = quantize_iq1_s;
    table.types[GGML_TYPE_IQ1_M].quantize = quantize_iq1_m;
    table.types[GGML_TYPE_IQ1_M].quantize_weighted = quantize_iq1_m;
    table.types[GGML_TYPE_IQ1_S].own_tables = true;
    table.types[GGML_TYPE_IQ1_M].own_tables = true;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
