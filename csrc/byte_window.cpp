#include "byte_window.h"

#include <algorithm>

namespace phiggml {

ByteWindow::ByteWindow(const ByteSource & source)
    : source_(source), bytes_(new std::uint8_t[std::min(capacity, source.size())]) {}

void ByteWindow::move_to(std::uint64_t offset, std::uint64_t nbytes) {
    const std::uint64_t at_hand = std::max(source_.at_hand(), offset) - offset;
    // What is not at hand is asked for all the same: the source says why it cannot be read.
    const std::uint64_t count = std::max(nbytes, std::min(capacity, at_hand));
    begin_ = offset;
    end_ = offset;
    source_.read(offset, count, bytes_.get());
    end_ = offset + count;
}

}  // namespace phiggml
