#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "error.h"

namespace phiggml {

namespace {

// One call of pread moves at most this much on Linux.
constexpr std::uint64_t max_transfer = 0x7ffff000;

int open_for_reading(const std::string & path) {
    // O_NONBLOCK: opening a named pipe must not wait for its writer.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        throw Error::system(errno, path);
    }
    return descriptor;
}

}  // namespace

MappedFile::Descriptor::~Descriptor() {
    ::close(value);
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::string & path) {
    return std::shared_ptr<const MappedFile>(new MappedFile(path));
}

MappedFile::MappedFile(const std::string & path) : path_(path), descriptor_(open_for_reading(path)) {
    struct stat status{};
    if (::fstat(descriptor_.value, &status) != 0) {
        throw Error::system(errno, path);
    }
    if (S_ISDIR(status.st_mode)) {
        throw Error::system(EISDIR, path);
    }
    if (!S_ISREG(status.st_mode)) {
        throw Error(ErrorKind::input,
                    "open: " + path + ": not a regular file, and only such can be mapped. Copy it to one.");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (size_ > std::numeric_limits<std::size_t>::max()) {
        throw Error::system(EFBIG, path);
    }
    if (size_ == 0) {
        return;  // an empty mapping does not exist
    }
    void * mapping = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, descriptor_.value, 0);
    if (mapping == MAP_FAILED) {
        throw Error::system(errno, path);
    }
    data_ = static_cast<const std::uint8_t *>(mapping);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) {
        ::munmap(const_cast<std::uint8_t *>(data_), static_cast<std::size_t>(size_));
    }
}

void MappedFile::read(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const {
    if (offset > size_ || nbytes > size_ - offset) {
        throw Error(ErrorKind::input, "read: bytes " + std::to_string(offset) +
                                          " and following: they lie beyond the file's " + std::to_string(size_) +
                                          " bytes.");
    }
    while (nbytes > 0) {
        const std::size_t chunk = static_cast<std::size_t>(std::min(nbytes, max_transfer));
        const ssize_t got = ::pread(descriptor_.value, out, chunk, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            throw Error::system(errno, path_);
        }
        if (got == 0) {
            throw Error::format("read: " + path_ + ": it has become shorter since it was opened. Open it again.",
                                offset)
                .with_path(path_);
        }
        offset += static_cast<std::uint64_t>(got);
        nbytes -= static_cast<std::uint64_t>(got);
        out += got;
    }
}

}  // namespace phiggml
