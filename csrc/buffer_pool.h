// Memory of one size that is handed round, so that it does not go to and fro between threads and the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "shutdown.h"

namespace phiggml {

class BufferPool : public std::enable_shared_from_this<BufferPool> {
public:
    explicit BufferPool(std::size_t nbytes) : nbytes_(nbytes) {}

    // So many bytes of any value. They come back when nobody holds them any more, on any thread, and the pool lives as
    // long as they do. In a forked child, where another thread may have left the pool locked, they are freed.
    std::shared_ptr<std::uint8_t> take() {
        Bytes bytes = reuse();
        if (!bytes) {
            bytes.reset(new std::uint8_t[nbytes_]);
        }
        std::uint8_t * const data = bytes.get();
        auto held = std::make_shared<Held>(shared_from_this(), std::move(bytes));
        return std::shared_ptr<std::uint8_t>(std::move(held), data);
    }

private:
    using Bytes = std::unique_ptr<std::uint8_t[]>;

    struct Held {
        Held(std::shared_ptr<BufferPool> from, Bytes held) : pool(std::move(from)), bytes(std::move(held)) {}
        Held(const Held &) = delete;
        Held & operator=(const Held &) = delete;
        ~Held() {
            if (pool->generation_ == fork_generation()) {
                pool->give_back(std::move(bytes));
            }
        }

        std::shared_ptr<BufferPool> pool;
        Bytes bytes;
    };

    Bytes reuse() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) {
            return nullptr;
        }
        Bytes bytes = std::move(free_.back());
        free_.pop_back();
        return bytes;
    }

    void give_back(Bytes bytes) noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        try {
            free_.push_back(std::move(bytes));
        } catch (const std::bad_alloc &) {
            // Then they are freed.
        }
    }

    std::size_t nbytes_;
    std::uint64_t generation_ = fork_generation();
    std::mutex mutex_;
    std::vector<Bytes> free_;
};

}  // namespace phiggml
