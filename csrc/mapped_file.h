// A file that was opened once and mapped read-only. Whoever looks at its bytes shares its ownership.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace phiggml {

class MappedFile {
public:
    // Throws Error: system when the file cannot be opened or mapped, input when it is no regular file.
    static std::shared_ptr<const MappedFile> open(const std::string & path);

    ~MappedFile();
    MappedFile(const MappedFile &) = delete;
    MappedFile & operator=(const MappedFile &) = delete;

    const std::uint8_t * data() const noexcept { return data_; }
    std::uint64_t size() const noexcept { return size_; }
    const std::string & path() const noexcept { return path_; }

    // Copies bytes [offset, offset + nbytes) with pread, which survives a file that someone truncates meanwhile
    // (touching the mapping there would end the process). Throws Error: format when the file has become shorter.
    void read(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const;

private:
    explicit MappedFile(const std::string & path);

    struct Descriptor {
        explicit Descriptor(int descriptor) : value(descriptor) {}
        ~Descriptor();
        Descriptor(const Descriptor &) = delete;
        Descriptor & operator=(const Descriptor &) = delete;
        int value;
    };

    std::string path_;
    Descriptor descriptor_;
    const std::uint8_t * data_ = nullptr;
    std::uint64_t size_ = 0;
};

}  // namespace phiggml
