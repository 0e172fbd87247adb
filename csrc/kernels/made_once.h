// Tables that the first use makes.
#pragma once

#include <new>

#include "kernels/simd.h"

namespace phiggml::kernels::PHIGGML_ISA {

// What `kept` points to, after `make` if it was null; null if that has no memory. Threads that begin at once each make
// their own, and one's stay: a lock, as a static variable has, would be held for ever in a child that is forked off
// while another thread makes them.
template <class Tables, class Make>
PHIGGML_INLINE const Tables * made_once(const Tables *& kept, Make make) {
    const Tables * tables = __atomic_load_n(&kept, __ATOMIC_ACQUIRE);
    if (tables == nullptr) {
        const Tables * fresh = make();
        if (__atomic_compare_exchange_n(&kept, &tables, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            return fresh;
        }
        delete fresh;
    }
    return tables;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
