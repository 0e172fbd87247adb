#include "grid_tables.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <mutex>
#include <thread>

#include "ggml.h"

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
            if (progress.stopped()) {
                throw Cancelled();
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
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

void await_tables(int type, const Progress & progress) {
    TableBuilds::instance().await(type, progress);
}

}  // namespace phiggml
