/* Stands in the place of ggml's ggml-cpu.c in every variant of the CPU backend. Threads wait for each other by
 * spinning; where there are fewer cores than threads that want one, a thread would spin away the time that the one it
 * waits for needs. Ours offers its core to others now and then. */
#include <sched.h>

static inline void phiggml_relax(void);

/* The definition has "void" between its brackets, a call nothing. */
#define ggml_thread_cpu_relax(x) phiggml_relax_##x
#define phiggml_relax_void upstream_relax(void)
#define phiggml_relax_ phiggml_relax()
#include "ggml-cpu.c"
#undef ggml_thread_cpu_relax

static inline void phiggml_relax(void) {
    static _Thread_local unsigned n_waited = 0;
    upstream_relax();
    if (++n_waited % 1024 == 0) {
        sched_yield();
    }
}
