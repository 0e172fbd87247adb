// What a long job and the thread that waits for it share: how far it is, and whether to stop.
#pragma once

#include <atomic>
#include <cstdint>

#include "shutdown.h"

namespace phiggml {

struct Progress {
    std::atomic<std::uint64_t> done{0};
    std::atomic<std::uint64_t> total{0};
    std::atomic<bool> cancelled{false};

    bool stopped() const { return cancelled || shutting_down(); }
};

// Thrown by a job that was stopped; never leaves bind.h, which raises what asked for the stop.
struct Cancelled {};

}  // namespace phiggml
