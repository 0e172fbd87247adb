#include "shutdown.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

namespace phiggml {

namespace {

constexpr auto most_patience = std::chrono::seconds(10);

std::atomic<bool> stopping{false};
std::atomic<std::uint64_t> generation{0};

struct Gate {
    std::mutex mutex;
    std::condition_variable left;
    std::uint64_t n_inside = 0;
    std::optional<std::thread::id> ended_by;
};

// Never destroyed: threads that wait forever may still hold it. A child gets a new one, for the parent's other threads,
// whose state it describes, do not exist there.
std::atomic<Gate *> & gate() {
    static std::atomic<Gate *> gate{new Gate};
    return gate;
}

extern "C" void begin_generation() {
    ++generation;
    stopping = false;
    gate() = new Gate;
}

}  // namespace

Inside::Inside() {
    Gate & here = *gate();
    std::unique_lock<std::mutex> lock(here.mutex);
    while (here.ended_by && *here.ended_by != std::this_thread::get_id()) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::hours(1));
        lock.lock();
    }
    ++here.n_inside;
}

Inside::Inside(Always) {
    Gate & here = *gate();
    const std::lock_guard<std::mutex> lock(here.mutex);
    ++here.n_inside;
}

Inside::~Inside() {
    Gate & here = *gate();
    {
        const std::lock_guard<std::mutex> lock(here.mutex);
        if (here.n_inside > 0) {  // a forked child leaves what its parent had entered
            --here.n_inside;
        }
    }
    here.left.notify_all();
}

void shut_down() {
    Gate & here = *gate();
    std::unique_lock<std::mutex> lock(here.mutex);
    here.ended_by = std::this_thread::get_id();
    stopping = true;
    // What the thread that ends the process still does afterwards need not stop.
    stopping = !here.left.wait_for(lock, most_patience, [&] { return here.n_inside == 0; });
}

bool shutting_down() noexcept {
    return stopping;
}

bool process_ends() {
    Gate & here = *gate();
    const std::lock_guard<std::mutex> lock(here.mutex);
    return here.ended_by.has_value();
}

std::uint64_t fork_generation() noexcept {
    return generation;
}

void watch_forks() {
    pthread_atfork(nullptr, nullptr, begin_generation);
}

}  // namespace phiggml
