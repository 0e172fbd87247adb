// A GGUF file, read by a bounded parser of our own: everything is checked before anything is handed out.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "byte_source.h"

namespace phiggml {

// The format's numbering of metadata value types.
enum class GgufType : std::uint32_t {
    uint8 = 0,
    int8 = 1,
    uint16 = 2,
    int16 = 3,
    uint32 = 4,
    int32 = 5,
    float32 = 6,
    boolean = 7,
    string = 8,
    array = 9,
    uint64 = 10,
    int64 = 11,
    float64 = 12,
};

// "UINT32" and so on; nullptr when the format has no such type.
const char * gguf_type_name(GgufType type) noexcept;

// Bytes of one value; 0 for strings and arrays, whose size varies, and for types that do not exist.
std::uint64_t gguf_type_size(GgufType type) noexcept;

// One key and where its value lies. Nothing is decoded.
struct GgufEntry {
    std::string key;
    std::uint64_t key_offset = 0;  // where in the file the pair begins
    GgufType type{};               // of the value, or of the elements of an array
    bool is_array = false;
    std::uint64_t offset = 0;                 // of the first element
    std::uint64_t end = 0;                    // behind the last
    std::uint64_t count = 1;                  // elements
    std::vector<std::uint64_t> string_marks;  // arrays of strings: where every string_stride-th begins

    static constexpr std::uint64_t string_stride = 64;
};

struct GgufTensor {
    std::string name;
    std::uint64_t info_offset = 0;  // where in the file its description begins
    int type = 0;                   // ggml's id
    std::uint32_t n_dims = 0;
    std::array<std::int64_t, 4> ne{1, 1, 1, 1};  // ggml's order: the row's length first
    std::uint64_t row_bytes = 0;
    std::uint64_t offset = 0;  // of its data, from the file's beginning
    std::uint64_t nbytes = 0;
};

// What the header says. Keys and names are copies: nobody can change them once they have been checked.
struct GgufHeader {
    std::uint32_t version = 0;
    bool big_endian = false;
    std::uint32_t alignment = 32;
    std::uint64_t header_end = 0;   // behind the last tensor's description
    std::uint64_t data_offset = 0;  // the same, aligned
    std::vector<GgufEntry> entries;
    std::vector<GgufTensor> tensors;
    std::vector<std::size_t> entries_by_key;  // indices of entries, sorted by key
};

// Composed byte by byte, so that it is right on any host; compilers make one load of it.
template <typename T>
T load_integer(const std::uint8_t * bytes, bool big_endian) {
    T value = 0;
    if (big_endian) {
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            value |= static_cast<T>(static_cast<T>(bytes[i]) << (8 * (sizeof(T) - 1 - i)));
        }
    } else {
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            value |= static_cast<T>(static_cast<T>(bytes[i]) << (8 * i));
        }
    }
    return value;
}

// One pass over copies of the header's bytes, memory proportional to its keys and tensors at worst. Throws Error:
// format with the offset of the fault; and what the source throws.
GgufHeader parse_gguf(const ByteSource & source);

struct GgufFault {
    std::string message;
    std::uint64_t offset;
};

// Every fault that can be told apart, at most some thousand; none for what parse_gguf accepts.
std::vector<GgufFault> find_gguf_faults(const ByteSource & source);

// Strings of a file, copied out of it.
struct GgufStrings {
    std::unique_ptr<std::uint8_t[]> bytes;
    std::vector<std::string_view> texts;
};

class GgufFile {
public:
    // Errors name the file.
    explicit GgufFile(std::shared_ptr<const ByteSource> source);

    const GgufHeader & header() const noexcept { return header_; }
    const ByteSource & source() const noexcept { return *source_; }
    const std::shared_ptr<const ByteSource> & shared_source() const noexcept { return source_; }

    // Of the source, when it was parsed.
    const ByteStamp & stamp() const noexcept { return stamp_; }

    // Whether nobody has written to it since it was parsed.
    bool is_unchanged() const { return source_->stamp() == stamp_; }

    // Throws Error: format when somebody has: what was parsed need not be there any more.
    void require_unchanged() const;

    // nullptr when there is none.
    const GgufEntry * find(std::string_view key) const;

    // Strings [start, stop) of an entry of strings. Throws Error: format when the file has changed since it was opened.
    GgufStrings strings(const GgufEntry & entry, std::uint64_t start, std::uint64_t stop) const;

private:
    std::shared_ptr<const ByteSource> source_;
    ByteStamp stamp_;
    GgufHeader header_;
};

}  // namespace phiggml
