// A parser's look at a source: copies of its bytes, which nobody can change or truncate between two looks at them.
#pragma once

#include <cstdint>
#include <memory>

#include "byte_source.h"

namespace phiggml {

class ByteWindow {
public:
    // The most bytes that are seen at once.
    static constexpr std::uint64_t capacity = 256 << 10;

    explicit ByteWindow(const ByteSource & source);

    // Bytes [offset, offset + nbytes) of the source, which must be there and no more than the capacity. Valid until
    // the next call.
    const std::uint8_t * at(std::uint64_t offset, std::uint64_t nbytes) {
        if (offset < begin_ || offset + nbytes > end_) {
            move_to(offset, nbytes);
        }
        return bytes_.get() + (offset - begin_);
    }

    // Where the bytes end that at() has brought.
    std::uint64_t end() const noexcept { return end_; }

private:
    void move_to(std::uint64_t offset, std::uint64_t nbytes);

    const ByteSource & source_;
    std::unique_ptr<std::uint8_t[]> bytes_;
    std::uint64_t begin_ = 0;
    std::uint64_t end_ = 0;
};

}  // namespace phiggml
