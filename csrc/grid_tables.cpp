#include "grid_tables.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <mutex>
#include <thread>

#include "ggml.h"

// Of ggml-threading.h, which is not among ggml's public headers: the lock that builds hold.
extern "C" void ggml_critical_section_start(void);
extern "C" void ggml_critical_section_end(void);

namespace phiggml {

namespace {

// ggml builds the lookup tables of a grid type at its first use, which takes seconds and cannot be stopped. So each
// build has a thread of its own that outlives a caller who gives up. Every call into ggml waits for the lock that a
// build holds, hence a call waits first for all that are under way, whatever its type.
class TableBuilds {
public:
    static TableBuilds & instance() {
        static TableBuilds builds;
        return builds;
    }

    bool done(int type) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return (!searches_grid(type) || builds_[static_cast<std::size_t>(type)].valid()) &&
               std::all_of(builds_.begin(), builds_.end(), [](const Build & build) {
                   return !build.valid() || build.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
               });
    }

    void await(int type, const Progress & progress) {
        begin(type);
        while (!done(type)) {
            progress.look();
            if (progress.stopped()) {
                throw Cancelled();
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }

    // Around a fork, so that the child, where a builder would not go on, finds both locks free and each table built
    // or not begun. A build may thus keep a fork waiting.
    void before_fork() {
        ggml_critical_section_start();
        mutex_.lock();
    }
    void after_fork() {
        mutex_.unlock();
        ggml_critical_section_end();
    }
    void after_fork_in_child() {
        builds_.fill(Build());
        after_fork();
    }

private:
    using Build = std::shared_future<void>;

    void begin(int type) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!searches_grid(type) || builds_[static_cast<std::size_t>(type)].valid()) {
            return;
        }
        std::promise<void> promise;
        Build build = promise.get_future().share();
        const auto work = [type](std::promise<void> built) {
            ggml_quantize_init(static_cast<ggml_type>(type));
            built.set_value();
        };
        std::thread(work, std::move(promise)).detach();
        builds_[static_cast<std::size_t>(type)] = std::move(build);
    }

    std::mutex mutex_;
    std::array<Build, GGML_TYPE_COUNT> builds_;
};

extern "C" void hold_builds() {
    TableBuilds::instance().before_fork();
}

extern "C" void release_builds() {
    TableBuilds::instance().after_fork();
}

extern "C" void renew_builds() {
    TableBuilds::instance().after_fork_in_child();
}

}  // namespace

bool searches_grid(int type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S: return true;
        default: return false;
    }
}

bool tables_built(int type) {
    return TableBuilds::instance().done(type);
}

void hold_forks_while_building() {
    TableBuilds::instance();
    pthread_atfork(hold_builds, release_builds, renew_builds);
}

void await_tables(int type, const Progress & progress) {
    TableBuilds::instance().await(type, progress);
}

}  // namespace phiggml
