// A GGUF file, read by a bounded parser of our own: everything is checked before anything is handed out.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mapped_file.h"

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
    std::uint32_t alignment = 32;
    std::uint64_t data_offset = 0;
    std::vector<GgufEntry> entries;
    std::vector<GgufTensor> tensors;
    std::vector<std::size_t> entries_by_key;  // indices of entries, sorted by key
};

// One pass, memory proportional to `size` at worst. Throws Error: format with the offset of the fault; unsupported for
// big-endian files.
GgufHeader parse_gguf(const std::uint8_t * data, std::uint64_t size);

class GgufFile {
public:
    // Errors name the file.
    explicit GgufFile(std::shared_ptr<const MappedFile> file);

    const GgufHeader & header() const noexcept { return header_; }
    const MappedFile & file() const noexcept { return *file_; }

    // nullptr when there is none.
    const GgufEntry * find(std::string_view key) const;

    // Element `index` of an entry of strings, without its length prefix.
    std::string_view string_at(const GgufEntry & entry, std::uint64_t index) const;

    // The string that begins at byte `position`, which is moved to its end: for walking an array of strings in order.
    std::string_view next_string(std::uint64_t & position) const;

private:
    std::shared_ptr<const MappedFile> file_;
    GgufHeader header_;
};

}  // namespace phiggml
