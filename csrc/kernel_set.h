// Which vectorised kernels run here: a set for each instruction set, chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace phiggml {

// Those that this CPU and its operating system run, the best first; the last is "ggml", which has no kernel of ours.
std::vector<std::string> kernel_sets();

// The set in use: the best, or what PHIGGML_CPU_VARIANT allows, or what use_kernel_set has chosen. Throws Error::device
// where that variable names no variant of the CPU module, or one that does not run here.
std::string kernel_set();

// For all calls from now on. Throws Error::input for one that is not among kernel_sets().
void use_kernel_set(const std::string & name);

const kernels::Table & kernel_table();

}  // namespace phiggml
