#include "gguf.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace phiggml {

namespace {

struct TypeFacts {
    const char * name;
    std::uint64_t size;
};

// Indexed by GgufType. Source: the GGUF format's table of metadata value types.
constexpr TypeFacts type_facts[] = {
    {"UINT8", 1}, {"INT8", 1},   {"UINT16", 2}, {"INT16", 2},  {"UINT32", 4}, {"INT32", 4},   {"FLOAT32", 4},
    {"BOOL", 1},  {"STRING", 0}, {"ARRAY", 0},  {"UINT64", 8}, {"INT64", 8},  {"FLOAT64", 8},
};

const TypeFacts * facts_of(GgufType type) noexcept {
    const auto index = static_cast<std::size_t>(type);
    return index < std::size(type_facts) ? &type_facts[index] : nullptr;
}

}  // namespace

const char * gguf_type_name(GgufType type) noexcept {
    const TypeFacts * facts = facts_of(type);
    return facts == nullptr ? nullptr : facts->name;
}

std::uint64_t gguf_type_size(GgufType type) noexcept {
    const TypeFacts * facts = facts_of(type);
    return facts == nullptr ? 0 : facts->size;
}

GgufFile::GgufFile(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {
    try {
        header_ = parse_gguf(file_->data(), file_->size());
    } catch (const Error & error) {
        const std::string message = "read GGUF: " + file_->path() + ": " + error.message();
        Error named =
            error.kind() == ErrorKind::format ? Error::format(message, error.offset()) : Error(error.kind(), message);
        throw named.with_path(file_->path());
    }
}

const GgufEntry * GgufFile::find(std::string_view key) const {
    const std::vector<std::size_t> & order = header_.entries_by_key;
    const auto found = std::lower_bound(
        order.begin(), order.end(), key,
        [this](std::size_t index, std::string_view wanted) { return header_.entries[index].key < wanted; });
    if (found == order.end() || header_.entries[*found].key != key) {
        return nullptr;
    }
    return &header_.entries[*found];
}

std::string_view GgufFile::next_string(std::uint64_t & position) const {
    const std::uint64_t prefix = header_.version == 1 ? 4 : 8;
    std::uint64_t length = 0;
    for (std::uint64_t i = 0; i < prefix; ++i) {
        length |= static_cast<std::uint64_t>(file_->data()[position + i]) << (8 * i);
    }
    const std::uint64_t begin = position + prefix;
    // The parser has checked this; checked again because the file may have been written to since.
    if (begin > file_->size() || length > file_->size() - begin) {
        throw Error::format("read GGUF: " + file_->path() + ": it has changed since it was opened. Open it again.",
                            position)
            .with_path(file_->path());
    }
    position = begin + length;
    return {reinterpret_cast<const char *>(file_->data() + begin), static_cast<std::size_t>(length)};
}

std::string_view GgufFile::string_at(const GgufEntry & entry, std::uint64_t index) const {
    std::uint64_t position = entry.is_array ? entry.string_marks[index / GgufEntry::string_stride] : entry.offset;
    for (std::uint64_t skip = entry.is_array ? index % GgufEntry::string_stride : 0; skip > 0; --skip) {
        next_string(position);
    }
    return next_string(position);
}

}  // namespace phiggml
