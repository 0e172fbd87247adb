#include "byte_source.h"

#include <cstring>

#include "error.h"

namespace phiggml {

void ByteSource::read(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const {
    if (offset > size_ || nbytes > size_ - offset) {
        throw Error(ErrorKind::input, "read: bytes " + std::to_string(offset) +
                                          " and following: they lie beyond the file's " + std::to_string(size_) +
                                          " bytes.");
    }
    if (nbytes > 0) {
        copy(offset, nbytes, out);
    }
}

void ByteSource::read_unchanged(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out,
                                const ByteStamp & since) const {
    read(offset, nbytes, out);
    // After the read: what was written before it shows in the time by now.
    const ByteStamp now = stamp();
    if (!(now == since)) {
        const std::string what = now.size < since.size ? "made shorter" : "written to";
        throw Error::format("read: " + name() + ": was " + what +
                            " while it was read. Begin again with an unchanged file.")
            .with_path(name());
    }
}

void MemoryBytes::copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const {
    std::memcpy(out, data() + offset, static_cast<std::size_t>(nbytes));
}

FileFront::FileFront(std::vector<std::uint8_t> front, std::uint64_t size, std::string name)
    : ByteSource(std::move(name), size, nullptr), front_(std::move(front)) {
    if (front_.size() > size) {
        throw Error(ErrorKind::input, "read: the front of a file cannot be longer than the file.");
    }
}

void FileFront::copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const {
    if (offset + nbytes > front_.size()) {
        throw Beyond{offset + nbytes};
    }
    std::memcpy(out, front_.data() + offset, static_cast<std::size_t>(nbytes));
}

}  // namespace phiggml
