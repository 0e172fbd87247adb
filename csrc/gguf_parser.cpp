// The bounded parser behind GgufFile. Every size is compared with the bytes that remain before anything is allocated.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "error.h"
#include "gguf.h"
#include "quant.h"

namespace phiggml {

namespace {

constexpr std::uint64_t max_key_bytes = 65535;       // the format's limit
constexpr std::uint64_t max_tensor_name_bytes = 63;  // ggml keeps 64 with the closing NUL
constexpr std::uint32_t max_dims = 4;
constexpr std::uint32_t newest_version = 3;
constexpr std::string_view alignment_key = "general.alignment";

// Composed byte by byte, so that it is right on any host; compilers make one load of it.
template <typename T>
T load_little_endian(const std::uint8_t * bytes) {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
        value |= static_cast<T>(static_cast<T>(bytes[i]) << (8 * i));
    }
    return value;
}

std::uint32_t swap_bytes(std::uint32_t value) {
    return (value >> 24) | ((value >> 8) & 0xff00u) | ((value << 8) & 0xff0000u) | (value << 24);
}

// A name from the file for a message: short, in quotes, on one line.
std::string quoted(std::string_view name) {
    constexpr std::size_t longest = 80;
    constexpr char digits[] = "0123456789abcdef";
    std::string text = "'";
    for (const char c : name.substr(0, longest)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) {
            text += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        } else {
            text += c;
        }
    }
    return text + (name.size() > longest ? "...'" : "'");
}

// Bytes of the UTF-8 sequence at the front of `rest`; 0 when there is none. Overlong forms, surrogates and code points
// beyond U+10FFFF are none (RFC 3629, section 4).
std::size_t utf8_sequence(std::string_view rest) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(rest[i]); };
    const unsigned char first = byte(0);
    if (first < 0x80) {
        return 1;
    }
    const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || rest.size() < length) {
        return 0;
    }
    unsigned char low = 0x80;
    unsigned char high = 0xbf;
    switch (first) {
        case 0xe0: low = 0xa0; break;
        case 0xed: high = 0x9f; break;
        case 0xf0: low = 0x90; break;
        case 0xf4: high = 0x8f; break;
        default: break;
    }
    for (std::size_t i = 1; i < length; ++i) {
        if (byte(i) < low || byte(i) > high) {
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t length = utf8_sequence(text);
        if (length == 0) {
            return false;
        }
        text.remove_prefix(length);
    }
    return true;
}

class Parser {
public:
    Parser(const std::uint8_t * data, std::uint64_t size) : data_(data), size_(size) {}

    GgufHeader parse() {
        read_magic_and_version();
        const std::uint64_t n_tensors = read_size("the number of tensors");
        const std::uint64_t n_entries = read_size("the number of metadata keys");
        // A tensor takes at least a name of one byte, a dimension count, a type and an offset; a pair at least a key of
        // one byte, a type and one byte.
        require_room("tensors", n_tensors, size_bytes_ + 1 + 4 + 4 + 8, position_);
        require_room("metadata keys", n_entries, size_bytes_ + 1 + 4 + 1, position_);
        read_entries(n_entries);
        set_alignment();
        read_tensors(n_tensors);
        place_tensors();
        return std::move(header_);
    }

private:
    [[noreturn]] void fail(const std::string & rule, std::uint64_t offset) const {
        throw Error::format((subject_.empty() ? "" : subject_ + ": ") + rule, offset);
    }

    std::uint64_t remaining() const { return size_ - position_; }

    void need(std::uint64_t nbytes, const char * what) const {
        if (nbytes > remaining()) {
            fail(std::string("the file ends at byte ") + std::to_string(size_) + ", inside " + what +
                     ". It is truncated or damaged; fetch it again.",
                 position_);
        }
    }

    template <typename T>
    T read(const char * what) {
        need(sizeof(T), what);
        const T value = load_little_endian<T>(data_ + position_);
        position_ += sizeof(T);
        return value;
    }

    // Version 1 wrote counts and lengths in 32 bits.
    std::uint64_t read_size(const char * what) {
        return header_.version == 1 ? read<std::uint32_t>(what) : read<std::uint64_t>(what);
    }

    void require_room(const char * what, std::uint64_t count, std::uint64_t least_bytes, std::uint64_t offset) const {
        if (count > remaining() / least_bytes) {
            fail("it claims " + std::to_string(count) + " " + what + ", and the " + std::to_string(remaining()) +
                     " bytes that follow hold at most " + std::to_string(remaining() / least_bytes) +
                     ". It is truncated or damaged; fetch it again.",
                 offset);
        }
    }

    std::string_view read_string(const char * what) {
        const std::uint64_t begin = position_;
        const std::uint64_t length = read_size(what);
        if (length > remaining()) {
            fail(std::string(what) + " claims " + std::to_string(length) + " bytes, and " +
                     std::to_string(remaining()) + " follow. The file is truncated or damaged; fetch it again.",
                 begin);
        }
        const std::string_view text(reinterpret_cast<const char *>(data_ + position_),
                                    static_cast<std::size_t>(length));
        position_ += length;
        return text;
    }

    std::string read_name(const char * what, std::uint64_t longest) {
        const std::uint64_t begin = position_;
        const std::string_view name = read_string(what);
        if (name.empty() || name.size() > longest) {
            fail(std::string(what) + " has " + std::to_string(name.size()) + " bytes, and must have 1 to " +
                     std::to_string(longest) + ".",
                 begin);
        }
        if (name.find('\0') != std::string_view::npos || !is_utf8(name)) {
            fail(std::string(what) + " " + quoted(name) + " must be UTF-8 without NUL.", begin);
        }
        return std::string(name);
    }

    void read_magic_and_version() {
        need(4, "the magic number");
        if (std::memcmp(data_, "GGUF", 4) != 0) {
            fail("it does not begin with the bytes 'GGUF', so it is no GGUF file.", 0);
        }
        position_ = 4;
        header_.version = read<std::uint32_t>("the version");
        const std::uint32_t swapped = swap_bytes(header_.version);
        if (swapped >= 1 && swapped <= newest_version) {
            throw Error(ErrorKind::unsupported,
                        "it is big-endian, and phiggml reads little-endian GGUF. Convert it with the gguf "
                        "package's gguf_convert_endian.");
        }
        if (header_.version < 1 || header_.version > newest_version) {
            fail("its GGUF version is " + std::to_string(header_.version) + ", and phiggml reads 1 to " +
                     std::to_string(newest_version) + ".",
                 4);
        }
        size_bytes_ = header_.version == 1 ? 4 : 8;
    }

    void read_entries(std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) {
            subject_ = "metadata key " + std::to_string(i);
            GgufEntry entry;
            entry.key_offset = position_;
            entry.key = read_name("its name", max_key_bytes);
            subject_ = "key " + quoted(entry.key);
            read_value(entry);
            header_.entries.push_back(std::move(entry));
        }
        subject_.clear();
        header_.entries_by_key = sorted_by_name(
            header_.entries, "key", [](const GgufEntry & entry) -> const std::string & { return entry.key; },
            [](const GgufEntry & entry) { return entry.key_offset; });
    }

    GgufType read_value_type(const char * what) {
        const std::uint64_t begin = position_;
        const auto type = static_cast<GgufType>(read<std::uint32_t>(what));
        if (gguf_type_name(type) == nullptr) {
            fail(std::string(what) + " is " + std::to_string(static_cast<std::uint32_t>(type)) +
                     ", and the format has 0 to 12.",
                 begin);
        }
        return type;
    }

    void read_value(GgufEntry & entry) {
        entry.type = read_value_type("its value type");
        if (entry.type == GgufType::array) {
            const std::uint64_t begin = position_;
            entry.is_array = true;
            entry.type = read_value_type("its element type");
            if (entry.type == GgufType::array) {
                fail("it is an array of arrays, which neither ggml nor phiggml reads.", begin);
            }
            const std::uint64_t count_offset = position_;
            entry.count = read_size("its element count");
            const std::uint64_t least = entry.type == GgufType::string ? size_bytes_ : gguf_type_size(entry.type);
            require_room("elements", entry.count, least, count_offset);
        }
        entry.offset = position_;
        if (entry.type == GgufType::string) {
            skip_strings(entry);
            return;
        }
        const std::uint64_t nbytes = entry.count * gguf_type_size(entry.type);  // require_room has bounded the product
        need(nbytes, "its value");
        position_ += nbytes;
        if (entry.type == GgufType::boolean) {
            check_booleans(entry);
        }
    }

    // The one loop whose speed matters: hundreds of thousands of tokens.
    void skip_strings(GgufEntry & entry) {
        if (!entry.is_array || header_.version == 1) {
            for (std::uint64_t i = 0; i < entry.count; ++i) {
                mark_string(entry, i);
                read_string("a string");
            }
            return;
        }
        const std::uint8_t * at = data_ + position_;
        const std::uint8_t * const end = data_ + size_;
        for (std::uint64_t i = 0; i < entry.count; ++i) {
            position_ = static_cast<std::uint64_t>(at - data_);
            mark_string(entry, i);
            const auto left = static_cast<std::uint64_t>(end - at);
            if (left < 8 || load_little_endian<std::uint64_t>(at) > left - 8) {
                read_string("a string");  // fails, and says why
            }
            at += 8 + load_little_endian<std::uint64_t>(at);
        }
        position_ = static_cast<std::uint64_t>(at - data_);
    }

    void mark_string(GgufEntry & entry, std::uint64_t index) const {
        if (entry.is_array && index % GgufEntry::string_stride == 0) {
            entry.string_marks.push_back(position_);
        }
    }

    // numpy takes a bool of any other byte for granted, and misbehaves on it.
    void check_booleans(const GgufEntry & entry) const {
        const std::uint8_t * const begin = data_ + entry.offset;
        const std::uint8_t * const end = begin + entry.count;
        const std::uint8_t * const bad = std::find_if(begin, end, [](std::uint8_t byte) { return byte > 1; });
        if (bad != end) {
            fail("a boolean is " + std::to_string(*bad) + ", and must be 0 or 1.",
                 static_cast<std::uint64_t>(bad - data_));
        }
    }

    void set_alignment() {
        const auto found = std::find_if(header_.entries.begin(), header_.entries.end(),
                                        [](const GgufEntry & entry) { return entry.key == alignment_key; });
        if (found == header_.entries.end()) {
            return;
        }
        subject_ = "key " + quoted(alignment_key);
        if (found->is_array || found->type != GgufType::uint32) {
            fail(std::string("its value is ") + (found->is_array ? "an array of " : "") + gguf_type_name(found->type) +
                     ", and must be UINT32.",
                 found->key_offset);
        }
        header_.alignment = load_little_endian<std::uint32_t>(data_ + found->offset);
        if (header_.alignment == 0 || (header_.alignment & (header_.alignment - 1)) != 0) {
            fail("its value is " + std::to_string(header_.alignment) + ", and must be a power of two.", found->offset);
        }
        subject_.clear();
    }

    void read_tensors(std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) {
            subject_ = "tensor " + std::to_string(i);
            GgufTensor tensor;
            tensor.info_offset = position_;
            tensor.name = read_name("its name", max_tensor_name_bytes);
            subject_ = "tensor " + quoted(tensor.name);
            read_shape(tensor);
            read_type(tensor);
            tensor.offset = read<std::uint64_t>("its offset");
            header_.tensors.push_back(std::move(tensor));
        }
        subject_.clear();
        sorted_by_name(
            header_.tensors, "tensor", [](const GgufTensor & tensor) -> const std::string & { return tensor.name; },
            [](const GgufTensor & tensor) { return tensor.info_offset; });
    }

    void read_shape(GgufTensor & tensor) {
        const std::uint64_t begin = position_;
        tensor.n_dims = read<std::uint32_t>("its number of dimensions");
        if (tensor.n_dims > max_dims) {
            fail("it has " + std::to_string(tensor.n_dims) + " dimensions, and ggml has at most 4.", begin);
        }
        for (std::uint32_t i = 0; i < tensor.n_dims; ++i) {
            const std::uint64_t offset = position_;
            const std::uint64_t size = read_size("its shape");
            if (size == 0 || size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
                fail("dimension " + std::to_string(i) + " is " + std::to_string(static_cast<std::int64_t>(size)) +
                         ", and must be at least 1.",
                     offset);
            }
            tensor.ne[i] = static_cast<std::int64_t>(size);
        }
    }

    void read_type(GgufTensor & tensor) {
        const std::uint64_t begin = position_;
        const auto id = read<std::uint32_t>("its type");
        if (id > static_cast<std::uint32_t>(std::numeric_limits<int>::max()) || !type_exists(static_cast<int>(id))) {
            fail("its type " + std::to_string(static_cast<std::int32_t>(id)) +
                     " is unknown to the ggml in this build, or has been removed from it.",
                 begin);
        }
        tensor.type = static_cast<int>(id);
        const std::int64_t block = block_size(tensor.type);
        if (tensor.ne[0] % block != 0) {
            fail("its rows have " + std::to_string(tensor.ne[0]) + " elements, no multiple of " +
                     std::to_string(block) + ", the block of " + type_name(tensor.type) + ".",
                 begin);
        }
        // Whatever fits in the file passes here, and no product below can wrap.
        std::uint64_t nbytes = block_bytes(tensor.type);
        for (std::uint32_t i = 0; i < max_dims; ++i) {
            const auto factor = static_cast<std::uint64_t>(i == 0 ? tensor.ne[0] / block : tensor.ne[i]);
            if (factor > size_ / nbytes) {
                fail("its data would be larger than the file's " + std::to_string(size_) +
                         " bytes. The file is truncated or damaged; fetch it again.",
                     begin);
            }
            nbytes *= factor;
            if (i == 0) {
                tensor.row_bytes = nbytes;
            }
        }
        tensor.nbytes = nbytes;
    }

    // Turns offsets within the data into offsets within the file, once each is known to lie there.
    void place_tensors() {
        const std::uint64_t padding = (header_.alignment - position_ % header_.alignment) % header_.alignment;
        header_.data_offset = position_ + padding;
        const std::uint64_t available = header_.data_offset < size_ ? size_ - header_.data_offset : 0;
        for (GgufTensor & tensor : header_.tensors) {
            subject_ = "tensor " + quoted(tensor.name);
            if (tensor.offset % header_.alignment != 0) {
                fail("its data offset " + std::to_string(tensor.offset) + " is no multiple of the alignment " +
                         std::to_string(header_.alignment) + ".",
                     tensor.info_offset);
            }
            if (tensor.offset > available || tensor.nbytes > available - tensor.offset) {
                fail("its " + std::to_string(tensor.nbytes) + " bytes at offset " + std::to_string(tensor.offset) +
                         " of the data end beyond the file, whose data have " + std::to_string(available) +
                         " bytes. It is truncated or damaged; fetch it again.",
                     tensor.info_offset);
            }
            tensor.offset += header_.data_offset;
        }
        check_overlaps();
    }

    void check_overlaps() {
        std::vector<const GgufTensor *> order;
        order.reserve(header_.tensors.size());
        for (const GgufTensor & tensor : header_.tensors) {
            order.push_back(&tensor);
        }
        std::sort(order.begin(), order.end(),
                  [](const GgufTensor * a, const GgufTensor * b) { return a->offset < b->offset; });
        for (std::size_t i = 1; i < order.size(); ++i) {
            if (order[i]->offset < order[i - 1]->offset + order[i - 1]->nbytes) {
                subject_ = "tensor " + quoted(order[i]->name);
                fail("its data overlap those of tensor " + quoted(order[i - 1]->name) + ".", order[i]->info_offset);
            }
        }
    }

    // Indices in the order of the names, which must differ. Sorted rather than hashed: no choice of names makes it
    // slow.
    template <typename T, typename Name, typename Offset>
    std::vector<std::size_t> sorted_by_name(const std::vector<T> & items, const char * noun, Name name, Offset offset) {
        std::vector<std::size_t> order(items.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return name(items[a]) < name(items[b]); });
        for (std::size_t i = 1; i < order.size(); ++i) {
            if (name(items[order[i]]) == name(items[order[i - 1]])) {
                subject_ = std::string(noun) + " " + quoted(name(items[order[i]]));
                fail("it appears twice.", offset(items[order[i]]));
            }
        }
        return order;
    }

    const std::uint8_t * data_;
    std::uint64_t size_;
    std::uint64_t position_ = 0;
    std::uint64_t size_bytes_ = 8;
    std::string subject_;  // what a message names first
    GgufHeader header_;
};

}  // namespace

GgufHeader parse_gguf(const std::uint8_t * data, std::uint64_t size) {
    return Parser(data, size).parse();
}

}  // namespace phiggml
