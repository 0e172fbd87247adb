#include "mapped_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <thread>

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
    return std::shared_ptr<const MappedFile>(new MappedFile(open_for_reading(path), path, false));
}

std::shared_ptr<const MappedFile> MappedFile::from_descriptor(int descriptor, const std::string & name) {
    const int own = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        throw Error::system(errno, name);
    }
    return std::shared_ptr<const MappedFile>(new MappedFile(own, name, true));
}

MappedFile::MappedFile(int descriptor, const std::string & name, bool shared)
    : ByteSource(name, 0, nullptr), descriptor_(descriptor), shared_(shared) {
    struct stat status{};
    if (::fstat(descriptor, &status) != 0) {
        throw Error::system(errno, name);
    }
    if (S_ISDIR(status.st_mode)) {
        throw Error::system(EISDIR, name);
    }
    if (!S_ISREG(status.st_mode)) {
        throw Error(ErrorKind::input,
                    "open: " + name + ": not a regular file, and only such can be mapped. Copy it to one.");
    }
    const auto size = static_cast<std::uint64_t>(status.st_size);
    if (size > std::numeric_limits<std::size_t>::max()) {
        throw Error::system(EFBIG, name);
    }
    if (size == 0) {
        return;  // an empty mapping does not exist
    }
    void * mapping = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_SHARED, descriptor, 0);
    if (mapping == MAP_FAILED) {
        throw Error::system(errno, name);
    }
    set_bytes(size, static_cast<const std::uint8_t *>(mapping));
}

MappedFile::~MappedFile() {
    if (data() != nullptr) {
        ::munmap(const_cast<std::uint8_t *>(data()), static_cast<std::size_t>(size()));
    }
}

ByteStamp MappedFile::stamp() const {
    struct stat status{};
    if (::fstat(descriptor_.value, &status) != 0) {
        throw Error::system(errno, name());
    }
#ifdef __APPLE__
    const timespec & written = status.st_mtimespec;
#else
    const timespec & written = status.st_mtim;
#endif
    return {static_cast<std::uint64_t>(status.st_size), written.tv_sec, written.tv_nsec};
}

std::shared_ptr<void> MappedFile::hold_still() const {
    if (shared_) {
        return nullptr;
    }
    // An edit in place takes milliseconds. Whoever holds the lock for longer is no editor of ours.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (::flock(descriptor_.value, LOCK_SH | LOCK_NB) != 0) {
        const bool in_use = errno == EWOULDBLOCK || errno == EINTR;
        if (!in_use || std::chrono::steady_clock::now() > deadline) {
            return nullptr;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const int descriptor = descriptor_.value;
    return {nullptr, [descriptor](void *) { ::flock(descriptor, LOCK_UN); }};
}

void MappedFile::expect(std::uint64_t offset, std::uint64_t nbytes) const noexcept {
#if defined(POSIX_FADV_WILLNEED)
    ::posix_fadvise(descriptor_.value, static_cast<off_t>(offset), static_cast<off_t>(nbytes), POSIX_FADV_WILLNEED);
#else
    static_cast<void>(offset);
    static_cast<void>(nbytes);
#endif
}

void MappedFile::copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const {
    while (nbytes > 0) {
        const std::size_t chunk = static_cast<std::size_t>(std::min(nbytes, max_transfer));
        const ssize_t got = ::pread(descriptor_.value, out, chunk, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            throw Error::system(errno, name());
        }
        if (got == 0) {
            throw Error::format("read: " + name() + ": it has become shorter since it was opened. Open it again.",
                                offset)
                .with_path(name());
        }
        offset += static_cast<std::uint64_t>(got);
        nbytes -= static_cast<std::uint64_t>(got);
        out += got;
    }
}

}  // namespace phiggml
