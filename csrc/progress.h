// What a long job and the thread that waits for it share: how far it is, and whether to stop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>

#include "shutdown.h"

namespace phiggml {

class Lookout;

struct Progress {
    std::atomic<std::uint64_t> done{0};
    std::atomic<std::uint64_t> total{0};
    std::atomic<bool> cancelled{false};
    const Lookout * lookout = nullptr;  // of the thread that called, or nothing

    void look() const;
    bool stopped() const { return cancelled || shutting_down(); }
};

// The same for work that stays on the thread that waits for it: it looks up now and then.
class Lookout {
public:
    // `look` is called by this thread alone, every `interval` at most.
    Lookout(std::function<void()> look, std::chrono::milliseconds interval)
        : look_(std::move(look)), interval_(interval), thread_(std::this_thread::get_id()) {}

    // Calls `look` if it is time to, and if this is the thread to do it.
    void look() const {
        if (std::this_thread::get_id() != thread_) {
            return;
        }
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ >= interval_) {
            last_ = now;
            look_();
        }
    }

private:
    std::function<void()> look_;
    std::chrono::milliseconds interval_;
    std::thread::id thread_;
    mutable std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

inline void Progress::look() const {
    if (lookout != nullptr) {
        lookout->look();
    }
}

// Thrown by a job that was stopped; never leaves bind.h, which raises what asked for the stop.
struct Cancelled {};

}  // namespace phiggml
