#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace phiggml {

namespace {

struct StackJob {
    const std::function<void()> & work;
    std::exception_ptr failure;
};

extern "C" void * run_job(void * pointer) {
    auto & job = *static_cast<StackJob *>(pointer);
    try {
        job.work();
    } catch (...) {
        job.failure = std::current_exception();
    }
    return nullptr;
}

}  // namespace

void share_pieces(std::uint64_t n_pieces, int n_threads, const Progress & progress,
                  const std::function<void(std::uint64_t)> & piece) {
    std::atomic<std::uint64_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
        try {
            for (std::uint64_t index = next++; index < n_pieces; index = next++) {
                progress.look();
                if (progress.stopped()) {
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
    const auto n_workers = std::min<std::uint64_t>(static_cast<std::uint64_t>(std::max(n_threads, 1)), n_pieces);
    work_together(static_cast<int>(n_workers) - 1, work, [&] { progress.look(); });
    if (failure) {
        std::rethrow_exception(failure);
    }
}

bool threads_start(int n_threads) {
    std::mutex held;
    std::vector<std::thread> threads;
    bool started = true;
    {
        const std::lock_guard<std::mutex> lock(held);  // none ends before all have begun
        try {
            for (int i = 0; i < n_threads; ++i) {
                threads.emplace_back([&] { const std::lock_guard<std::mutex> wait(held); });
            }
        } catch (const std::exception &) {
            started = false;
        }
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    return started;
}

void run_on_stack(std::size_t stack_bytes, const std::function<void()> & work) {
    StackJob job{work, nullptr};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_t thread;
    const bool started = pthread_attr_setstacksize(&attributes, stack_bytes) == 0 &&
                         pthread_create(&thread, &attributes, run_job, &job) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        throw std::bad_alloc();
    }
    pthread_join(thread, nullptr);
    if (job.failure) {
        std::rethrow_exception(job.failure);
    }
}

}  // namespace phiggml
