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

GgufFile::GgufFile(std::shared_ptr<const ByteSource> source) : source_(std::move(source)) {
    const std::shared_ptr<void> still = source_->hold_still();
    stamp_ = source_->stamp();
    try {
        header_ = parse_gguf(*source_);
    } catch (const Error & error) {
        if (error.kind() != ErrorKind::format || !error.path().empty()) {
            throw;
        }
        throw Error::format("read GGUF: " + source_->name() + ": " + error.message(), error.offset())
            .with_path(source_->name());
    }
    require_unchanged();
}

void GgufFile::require_unchanged() const {
    if (!is_unchanged()) {
        throw Error::format("read GGUF: " + source_->name() + ": it has changed since it was opened. Open it again.")
            .with_path(source_->name());
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

GgufStrings GgufFile::strings(const GgufEntry & entry, std::uint64_t start, std::uint64_t stop) const {
    GgufStrings found;
    require_unchanged();
    if (start >= stop) {
        return found;
    }
    constexpr std::uint64_t stride = GgufEntry::string_stride;
    const std::uint64_t begin = entry.is_array ? entry.string_marks[start / stride] : entry.offset;
    const std::uint64_t last_mark = (stop + stride - 1) / stride;
    const std::uint64_t end = last_mark < entry.string_marks.size() ? entry.string_marks[last_mark] : entry.end;
    found.bytes.reset(new std::uint8_t[end - begin]);
    source_->read(begin, end - begin, found.bytes.get());

    const std::uint64_t prefix = header_.version == 1 ? 4 : 8;
    const std::uint64_t nbytes = end - begin;
    found.texts.reserve(stop - start);
    std::uint64_t position = 0;
    for (std::uint64_t i = entry.is_array ? start / stride * stride : 0; i < stop; ++i) {
        std::uint64_t length = 0;
        // The parser has checked this; checked again because the file may have been written to since.
        const bool has_prefix = nbytes - position >= prefix;
        if (has_prefix) {
            const std::uint8_t * at = found.bytes.get() + position;
            length = prefix == 8 ? load_integer<std::uint64_t>(at, header_.big_endian)
                                 : load_integer<std::uint32_t>(at, header_.big_endian);
        }
        if (!has_prefix || length > nbytes - position - prefix) {
            throw Error::format(
                "read GGUF: " + source_->name() + ": it has changed since it was opened. Open it again.",
                begin + position)
                .with_path(source_->name());
        }
        if (i >= start) {
            found.texts.emplace_back(reinterpret_cast<const char *>(found.bytes.get() + position + prefix),
                                     static_cast<std::size_t>(length));
        }
        position += prefix + length;
    }
    return found;
}

}  // namespace phiggml
