// Where the bytes of a file come from: a mapped file, memory, or the front of a file that is elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace phiggml {

// By which one tells that a file has been written to.
struct ByteStamp {
    std::uint64_t size = 0;
    std::int64_t seconds = 0;
    std::int64_t nanoseconds = 0;

    bool operator==(const ByteStamp & other) const noexcept {
        return size == other.size && seconds == other.seconds && nanoseconds == other.nanoseconds;
    }
};

class ByteSource {
public:
    virtual ~ByteSource() = default;
    ByteSource(const ByteSource &) = delete;
    ByteSource & operator=(const ByteSource &) = delete;

    // What messages call it: the path, where there is one.
    const std::string & name() const noexcept { return name_; }

    // Bytes of the whole file.
    std::uint64_t size() const noexcept { return size_; }

    // All of them in memory; nullptr where they are not.
    const std::uint8_t * data() const noexcept { return data_; }

    // How many of them, from the beginning, can be read.
    virtual std::uint64_t at_hand() const noexcept { return size_; }

    // Now; of what cannot be written to it is always the same.
    virtual ByteStamp stamp() const { return {size_, 0, 0}; }

    // These bytes will be read soon: a hint that costs nothing.
    virtual void expect(std::uint64_t, std::uint64_t) const noexcept {}

    // Keeps phiggml's editors from the file as long as the result lives; nullptr where that cannot be.
    virtual std::shared_ptr<void> hold_still() const { return nullptr; }

    // Copies bytes [offset, offset + nbytes). Throws Error: input when they lie beyond the end, and what the source
    // does.
    void read(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const;

    // The same of a source that must be as it was: throws Error: format when it has been written to since.
    void read_unchanged(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out, const ByteStamp & since) const;

protected:
    ByteSource(std::string name, std::uint64_t size, const std::uint8_t * data)
        : name_(std::move(name)), size_(size), data_(data) {}

    void set_bytes(std::uint64_t size, const std::uint8_t * data) noexcept {
        size_ = size;
        data_ = data;
    }

private:
    virtual void copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const = 0;

    std::string name_;
    std::uint64_t size_;
    const std::uint8_t * data_;
};

// Bytes in memory that `owner` keeps there, unchanged.
class MemoryBytes final : public ByteSource {
public:
    MemoryBytes(const std::uint8_t * data, std::uint64_t size, std::shared_ptr<const void> owner, std::string name)
        : ByteSource(std::move(name), size, data), owner_(std::move(owner)) {}

private:
    void copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const override;

    std::shared_ptr<const void> owner_;
};

// The first bytes of a file that is elsewhere. What lies behind them cannot be read: Beyond says how many would do.
class FileFront final : public ByteSource {
public:
    struct Beyond {
        std::uint64_t wanted;
    };

    FileFront(std::vector<std::uint8_t> front, std::uint64_t size, std::string name);

    std::uint64_t at_hand() const noexcept override { return front_.size(); }

private:
    void copy(std::uint64_t offset, std::uint64_t nbytes, std::uint8_t * out) const override;

    std::vector<std::uint8_t> front_;
};

}  // namespace phiggml
