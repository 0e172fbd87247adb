// The lookup tables of ggml's IQ1, IQ2 and IQ3 types.
#pragma once

#include "progress.h"

namespace phiggml {

// Whether quantizing to this type searches a grid, for which ggml builds tables at the first use.
bool searches_grid(int type);

// Whether quantizing can begin at once; otherwise it waits for tables to be built, which takes seconds.
bool tables_built(int type);

// Called once, when the module is imported: a fork waits until no table is being built, and the child begins anew.
void hold_forks_while_building();

// Waits until the tables of this type, and all others under way, are built. Throws Cancelled.
void await_tables(int type, const Progress & progress);

}  // namespace phiggml
