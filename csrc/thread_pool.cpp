#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "shutdown.h"
#include "wait.h"

namespace phiggml {

namespace {

constexpr std::chrono::milliseconds patience(20);

struct Job {
    const std::function<void()> & work;
    int wanted;  // threads that may still join
    int inside = 0;
};

// Its threads never end, so it is never destroyed: they wait on its members until the process is gone.
class Pool {
public:
    void work_together(int n_extra, const std::function<void()> & work, const std::function<void()> & meanwhile) {
        Job job{work, n_extra};
        if (n_extra > 0) {
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                jobs_.push_back(&job);
                start_threads();
            }
            posted_.notify_all();
        }
        work();
        if (n_extra > 0) {
            std::unique_lock<std::mutex> lock(mutex_);
            jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
            while (!left_.wait_for(lock, patience, [&] { return job.inside == 0; })) {
                lock.unlock();
                meanwhile();
                lock.lock();
            }
        }
    }

private:
    // So many that every job has those it wants. Where the system gives no more, the others do the work.
    void start_threads() {
        int wanted = 0;
        for (const Job * job : jobs_) {
            wanted += job->wanted;
        }
        try {
            for (; n_idle_ < wanted; ++n_idle_) {
                std::thread([this] { serve(); }).detach();
            }
        } catch (const std::exception &) {
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wait_until_true(posted_, lock, [&] { return !jobs_.empty(); });
            Job & job = *jobs_.front();
            if (--job.wanted == 0) {
                jobs_.pop_front();
            }
            ++job.inside;
            --n_idle_;
            lock.unlock();
            job.work();
            lock.lock();
            ++n_idle_;
            if (--job.inside == 0) {
                left_.notify_all();
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable posted_;
    std::condition_variable left_;
    std::deque<Job *> jobs_;  // those that want more threads
    int n_idle_ = 0;          // threads that wait, or are about to
};

struct Instance {
    std::uint64_t generation;
    Pool pool;
};

// A forked child has none of its parent's threads, so it begins with a pool of its own and leaves the old one.
Pool & pool() {
    static std::atomic<Instance *> current{nullptr};
    Instance * found = current;
    while (found == nullptr || found->generation != fork_generation()) {
        auto fresh = std::make_unique<Instance>();
        fresh->generation = fork_generation();
        if (current.compare_exchange_strong(found, fresh.get())) {
            found = fresh.release();
        }
    }
    return found->pool;
}

}  // namespace

void work_together(int n_extra, const std::function<void()> & work, const std::function<void()> & meanwhile) {
    pool().work_together(n_extra, work, meanwhile);
}

}  // namespace phiggml
