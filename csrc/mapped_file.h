// A file that was opened once and mapped read-only. Whoever looks at its bytes shares its ownership.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "byte_source.h"

namespace phiggml {

// read() copies with pread, which survives a file that someone truncates meanwhile (touching the mapping there would
// end the process), and then throws Error: format.
class MappedFile final : public ByteSource {
public:
    // Throws Error: system when the file cannot be opened or mapped, input when it is no regular file.
    static std::shared_ptr<const MappedFile> open(const std::string & path);

    // The file behind a descriptor, which stays the caller's.
    static std::shared_ptr<const MappedFile> from_descriptor(int descriptor, const std::string & name);

    ~MappedFile() override;

    // Of the open file, valid as long as this object.
    int descriptor() const noexcept { return descriptor_.value; }

    ByteStamp stamp() const override;
    void expect(std::uint64_t offset, std::uint64_t nbytes) const noexcept override;
    std::shared_ptr<void> hold_still() const override;

private:
    struct Descriptor {
        explicit Descriptor(int descriptor) : value(descriptor) {}
        ~Descriptor();
        Descriptor(const Descriptor &) = delete;
        Descriptor & operator=(const Descriptor &) = delete;
        int value;
    };

    // Takes the descriptor over. One that is shared with others is never locked: the lock would be theirs too.
    MappedFile(int descriptor, const std::string & name, bool shared);

    void copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const override;

    Descriptor descriptor_;
    bool shared_;
};

}  // namespace phiggml
