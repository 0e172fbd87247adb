/* Stands in the place of ggml's ggml-quants.c in the ggml-base library, for the lattices that it keeps to itself. */
#include "ggml_quants.h"

#include "ggml-quants.c"

struct phiggml_lattice phiggml_lattice_of(int type) {
    struct phiggml_lattice lattice = {NULL, NULL, NULL};
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S: {
            const iq2_entry_t * entry = &iq2_data[iq2_data_index((enum ggml_type)type)];
            lattice.grid = entry->grid;
            lattice.map = entry->map;
            lattice.neighbours = entry->neighbours;
            break;
        }
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S: {
            const iq3_entry_t * entry = &iq3_data[iq3_data_index(type == GGML_TYPE_IQ3_XXS ? 256 : 512)];
            lattice.grid = entry->grid;
            lattice.map = entry->map;
            lattice.neighbours = entry->neighbours;
            break;
        }
        default: break;
    }
    return lattice;
}
