#include "threads.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace phiggml {

void share_pieces(std::uint64_t n_pieces, int n_threads, const Progress & progress,
                  const std::function<void(std::uint64_t)> & piece) {
    std::atomic<std::uint64_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
        try {
            for (std::uint64_t index = next++; index < n_pieces; index = next++) {
                if (progress.cancelled) {
                    throw Cancelled();
                }
                piece(index);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) {
                failure = std::current_exception();
            }
            next = n_pieces;
        }
    };
    const std::uint64_t n_extra = std::min<std::uint64_t>(static_cast<std::uint64_t>(std::max(n_threads, 1)), n_pieces);
    std::vector<std::thread> threads;
    try {
        for (std::uint64_t i = 1; i < n_extra; ++i) {
            threads.emplace_back(work);
        }
    } catch (const std::system_error &) {  // the system has no more threads: those that started do the work
    }
    work();
    for (std::thread & thread : threads) {
        thread.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace phiggml
