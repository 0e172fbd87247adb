// Shares independent pieces of work among threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "progress.h"

namespace phiggml {

// Calls piece(index) once for each index in [0, n_pieces), on up to n_threads threads, the caller's among them.
// The first exception stops the rest and is thrown here; Cancelled is thrown when progress says so. `done` of
// progress is left to the pieces.
void share_pieces(std::uint64_t n_pieces, int n_threads, const Progress & progress,
                  const std::function<void(std::uint64_t)> & piece);

// Whether the system lets this process have so many more threads, which end at once.
bool threads_start(int n_threads);

// Calls work() on a thread of its own that has so large a stack, and waits for it. Throws what it throws, and
// std::bad_alloc where there is no such thread to be had.
void run_on_stack(std::size_t stack_bytes, const std::function<void()> & work);

}  // namespace phiggml
