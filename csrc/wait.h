// Waiting without std::condition_variable::wait: GCC 12's is a symbol that the libstdc++ of older systems lacks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace phiggml {

// Until `is_done` says so; asked when `changed` is notified.
template <typename Predicate>
void wait_until_true(std::condition_variable & changed, std::unique_lock<std::mutex> & lock, Predicate is_done) {
    while (!changed.wait_for(lock, std::chrono::hours(1), is_done)) {
    }
}

}  // namespace phiggml
