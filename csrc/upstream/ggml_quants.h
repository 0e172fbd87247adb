/* The lattices of ggml's IQ1, IQ2 and IQ3 types, which it keeps to itself. */
#ifndef PHIGGML_UPSTREAM_GGML_QUANTS_H
#define PHIGGML_UPSTREAM_GGML_QUANTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && !defined(GGML_BUILD)
#define PHIGGML_QUANTS_API __declspec(dllimport)
#elif defined(_WIN32)
#define PHIGGML_QUANTS_API __declspec(dllexport)
#else
#define PHIGGML_QUANTS_API __attribute__((visibility("default")))
#endif

/* Null until ggml_quantize_init(type) has built them; they stay until ggml_quantize_free(). */
struct phiggml_lattice {
    const void * grid;           /* int8[size][8] of IQ1 and IQ2, int8[size][4] of IQ3 */
    const int * map;             /* by the levels of a group: its grid index, or -(1 + offset into neighbours) */
    const uint16_t * neighbours; /* lists: a count, and so many grid indices */
};

/* Of IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S by their ggml_type; all null for others. */
PHIGGML_QUANTS_API struct phiggml_lattice phiggml_lattice_of(int type);

#ifdef __cplusplus
}
#endif

#endif
