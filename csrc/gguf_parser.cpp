// The bounded parser behind GgufFile. Every size is compared with the bytes that remain before anything is allocated.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "byte_window.h"
#include "error.h"
#include "gguf.h"
#include "gguf_text.h"
#include "quant_type.h"

namespace phiggml {

namespace {

constexpr std::uint64_t max_key_bytes = 65535;       // the format's limit
constexpr std::uint64_t max_tensor_name_bytes = 63;  // ggml keeps 64 with the closing NUL
constexpr std::uint32_t max_dims = 4;
constexpr std::uint32_t newest_version = 3;
constexpr std::string_view alignment_key = "general.alignment";

constexpr std::size_t most_faults = 1000;

// Beyond all files that exist, and little enough to be read and kept: a file can be a hole of any size.
constexpr std::uint64_t max_header_bytes = 128 << 20;
constexpr std::uint64_t max_entries = 1 << 18;

class Parser {
public:
    // With `faults`, all that can be told apart are collected; else the first is thrown.
    Parser(const ByteSource & source, std::vector<GgufFault> * faults)
        : source_(source), size_(source.size()), window_(source), faults_(faults) {}

    GgufHeader parse() {
        read_magic_and_version();
        const std::uint64_t n_tensors = read_size("the number of tensors");
        const std::uint64_t n_entries = read_size("the number of metadata keys");
        // A tensor takes at least a name of one byte, a dimension count, a type and an offset; a pair at least a key of
        // one byte, a type and one byte.
        require_room("tensors", n_tensors, size_bytes_ + 1 + 4 + 4 + 8, position_);
        require_room("metadata keys", n_entries, size_bytes_ + 1 + 4 + 1, position_);
        for (const std::uint64_t count : {n_tensors, n_entries}) {
            if (count > max_entries) {
                fail("it has " + std::to_string(count) + " tensors or metadata keys, and phiggml reads up to " +
                         std::to_string(max_entries) + ".",
                     8);
            }
        }
        read_entries(n_entries);
        read_tensors(n_tensors);
        header_.header_end = position_;
        place_tensors();
        if (position_ > source_.at_hand()) {
            window_.at(position_ - 1, 1);  // values that were passed over must be at hand as well
        }
        return std::move(header_);
    }

private:
    [[noreturn]] void fail(const std::string & rule, std::uint64_t offset) const {
        throw Error::format((subject_.empty() ? "" : subject_ + ": ") + rule, offset);
    }

    // Of a fault behind which the file can still be read.
    void fault(const std::string & rule, std::uint64_t offset) const {
        if (faults_ == nullptr || faults_->size() >= most_faults) {
            fail(rule, offset);
        }
        faults_->push_back({(subject_.empty() ? "" : subject_ + ": ") + rule, offset});
    }

    std::uint64_t remaining() const { return size_ - position_; }

    void need(std::uint64_t nbytes, const char * what) const {
        if (nbytes > remaining()) {
            fail(std::string("the file ends at byte ") + std::to_string(size_) + ", inside " + what +
                     ". It is truncated or damaged; fetch it again.",
                 position_);
        }
        require_small_header(nbytes);
    }

    void require_small_header(std::uint64_t nbytes) const {
        if (nbytes > max_header_bytes - position_) {
            fail("its header goes on behind byte " + std::to_string(max_header_bytes) +
                     ", and phiggml reads headers up to there.",
                 position_);
        }
    }

    // What may follow the position.
    std::uint64_t room() const { return std::min(size_, max_header_bytes) - position_; }

    template <typename T>
    T read(const char * what) {
        need(sizeof(T), what);
        const T value = load_integer<T>(window_.at(position_, sizeof(T)), header_.big_endian);
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

    // The length of a string whose bytes follow and are there.
    std::uint64_t read_length(const char * what) {
        const std::uint64_t begin = position_;
        const std::uint64_t length = read_size(what);
        if (length > remaining()) {
            fail(std::string(what) + " claims " + std::to_string(length) + " bytes, and " +
                     std::to_string(remaining()) + " follow. The file is truncated or damaged; fetch it again.",
                 begin);
        }
        require_small_header(length);
        return length;
    }

    std::string read_name(const char * what, std::uint64_t longest) {
        const std::uint64_t begin = position_;
        const std::uint64_t length = read_length(what);
        const std::uint64_t shown = std::min(length, longest);
        const auto * bytes = reinterpret_cast<const char *>(window_.at(position_, shown));
        std::string name(bytes, static_cast<std::size_t>(shown));
        position_ += length;
        if (length == 0 || length > longest) {
            fault(std::string(what) + " has " + std::to_string(length) + " bytes, and must have 1 to " +
                      std::to_string(longest) + ".",
                  begin);
        } else if (name.find('\0') != std::string::npos || !is_utf8(name)) {
            fault(std::string(what) + " " + quoted(name) + " must be UTF-8 without NUL.", begin);
        }
        return name;
    }

    void read_magic_and_version() {
        need(4, "the magic number");
        if (std::memcmp(window_.at(0, 4), "GGUF", 4) != 0) {
            fail("it does not begin with the bytes 'GGUF', so it is no GGUF file.", 0);
        }
        position_ = 4;
        const auto version = read<std::uint32_t>("the version");
        // The magic number has no byte order; the version, which is small, shows it.
        header_.big_endian = version >= 1u << 24;
        position_ = 4;
        header_.version = read<std::uint32_t>("the version");
        if (header_.version < 1 || header_.version > newest_version) {
            const std::uint32_t shown = std::min(version, header_.version);
            fail("its GGUF version is " + std::to_string(shown) + ", and phiggml reads 1 to " +
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
        } else {
            const std::uint64_t nbytes = entry.count * gguf_type_size(entry.type);  // bounded by require_room
            need(nbytes, "its value");
            position_ += nbytes;
        }
        entry.end = position_;
        if (entry.type == GgufType::boolean) {
            check_booleans(entry);
        }
        if (entry.key == alignment_key) {
            set_alignment(entry);
        }
    }

    // The one loop whose speed matters: hundreds of thousands of tokens.
    void skip_strings(GgufEntry & entry) {
        const std::uint64_t prefix = size_bytes_;
        for (std::uint64_t i = 0; i < entry.count;) {
            need(prefix, "a string");
            const std::uint8_t * at = window_.at(position_, prefix);
            const std::uint8_t * const end = at + (window_.end() - position_);
            while (i < entry.count && static_cast<std::uint64_t>(end - at) >= prefix) {
                if (entry.is_array && i % GgufEntry::string_stride == 0) {
                    entry.string_marks.push_back(position_);
                }
                const std::uint64_t length = prefix == 8 ? load_integer<std::uint64_t>(at, header_.big_endian)
                                                         : load_integer<std::uint32_t>(at, header_.big_endian);
                if (length > room() - prefix) {
                    read_length("a string");  // fails, and says why
                }
                ++i;
                position_ += prefix + length;
                if (length > static_cast<std::uint64_t>(end - at) - prefix) {
                    break;
                }
                at += prefix + length;
            }
        }
    }

    // numpy takes a bool of any other byte for granted, and misbehaves on it.
    void check_booleans(const GgufEntry & entry) {
        for (std::uint64_t offset = entry.offset; offset < entry.end;) {
            const std::uint64_t count = std::min(entry.end - offset, ByteWindow::capacity);
            const std::uint8_t * const begin = window_.at(offset, count);
            const std::uint8_t * const end = begin + count;
            const std::uint8_t * const bad = std::find_if(begin, end, [](std::uint8_t byte) { return byte > 1; });
            if (bad != end) {
                fault("a boolean is " + std::to_string(*bad) + ", and must be 0 or 1.",
                      offset + static_cast<std::uint64_t>(bad - begin));
                return;
            }
            offset += count;
        }
    }

    void set_alignment(const GgufEntry & entry) {
        if (entry.is_array || entry.type != GgufType::uint32) {
            fault(std::string("its value is ") + (entry.is_array ? "an array of " : "") + gguf_type_name(entry.type) +
                      ", and must be UINT32.",
                  entry.key_offset);
            return;
        }
        const auto alignment = load_integer<std::uint32_t>(window_.at(entry.offset, 4), header_.big_endian);
        if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
            fault("its value is " + std::to_string(alignment) + ", and must be a power of two.", entry.offset);
            return;
        }
        header_.alignment = alignment;
    }

    void read_tensors(std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) {
            subject_ = "tensor " + std::to_string(i);
            GgufTensor tensor;
            tensor.info_offset = position_;
            tensor.name = read_name("its name", max_tensor_name_bytes);
            subject_ = "tensor " + quoted(tensor.name);
            bool sound = read_shape(tensor);
            sound = read_type(tensor, sound) && sound;
            tensor.offset = read<std::uint64_t>("its offset");
            header_.tensors.push_back(std::move(tensor));
            sound_.push_back(sound);
        }
        subject_.clear();
        sorted_by_name(
            header_.tensors, "tensor", [](const GgufTensor & tensor) -> const std::string & { return tensor.name; },
            [](const GgufTensor & tensor) { return tensor.info_offset; });
    }

    // Whether the shape makes sense.
    bool read_shape(GgufTensor & tensor) {
        const std::uint64_t begin = position_;
        tensor.n_dims = read<std::uint32_t>("its number of dimensions");
        if (tensor.n_dims > max_dims) {
            fail("it has " + std::to_string(tensor.n_dims) + " dimensions, and ggml has at most 4.", begin);
        }
        bool sound = true;
        for (std::uint32_t i = 0; i < tensor.n_dims; ++i) {
            const std::uint64_t offset = position_;
            const std::uint64_t size = read_size("its shape");
            if (size == 0 || size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
                fault("dimension " + std::to_string(i) + " is " + std::to_string(static_cast<std::int64_t>(size)) +
                          ", and must be at least 1.",
                      offset);
                sound = false;
            }
            tensor.ne[i] = static_cast<std::int64_t>(size);
        }
        return sound;
    }

    // Whether there is such a type, and data of a size that the file may have.
    bool read_type(GgufTensor & tensor, bool sound) {
        const std::uint64_t begin = position_;
        const auto id = read<std::uint32_t>("its type");
        if (id > static_cast<std::uint32_t>(std::numeric_limits<int>::max()) || !type_exists(static_cast<int>(id))) {
            fault("its type " + std::to_string(static_cast<std::int32_t>(id)) +
                      " is unknown to the ggml in this build, or has been removed from it.",
                  begin);
            return false;
        }
        tensor.type = static_cast<int>(id);
        const std::int64_t block = block_size(tensor.type);
        if (!sound) {
            return false;
        }
        if (tensor.ne[0] % block != 0) {
            fault("its rows have " + std::to_string(tensor.ne[0]) + " elements, no multiple of " +
                      std::to_string(block) + ", the block of " + type_name(tensor.type) + ".",
                  begin);
            return false;
        }
        return measure(tensor, begin);
    }

    // Whatever fits in the file passes here, and no product can wrap.
    bool measure(GgufTensor & tensor, std::uint64_t offset) {
        const std::int64_t block = block_size(tensor.type);
        std::uint64_t nbytes = block_bytes(tensor.type);
        for (std::uint32_t i = 0; i < max_dims; ++i) {
            const auto factor = static_cast<std::uint64_t>(i == 0 ? tensor.ne[0] / block : tensor.ne[i]);
            if (factor > size_ / nbytes) {
                fault("its data would be larger than the file's " + std::to_string(size_) +
                          " bytes. The file is truncated or damaged; fetch it again.",
                      offset);
                return false;
            }
            nbytes *= factor;
            if (i == 0) {
                tensor.row_bytes = nbytes;
            }
        }
        tensor.nbytes = nbytes;
        return true;
    }

    // Turns offsets within the data into offsets within the file, once each is known to lie there.
    void place_tensors() {
        const std::uint64_t padding = (header_.alignment - position_ % header_.alignment) % header_.alignment;
        header_.data_offset = position_ + padding;
        const std::uint64_t available = header_.data_offset < size_ ? size_ - header_.data_offset : 0;
        for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
            GgufTensor & tensor = header_.tensors[i];
            subject_ = "tensor " + quoted(tensor.name);
            if (tensor.offset % header_.alignment != 0) {
                fault("its data offset " + std::to_string(tensor.offset) + " is no multiple of the alignment " +
                          std::to_string(header_.alignment) + ".",
                      tensor.info_offset);
            }
            if (sound_[i] && (tensor.offset > available || tensor.nbytes > available - tensor.offset)) {
                fault("its " + std::to_string(tensor.nbytes) + " bytes at offset " + std::to_string(tensor.offset) +
                          " of the data end beyond the file, whose data have " + std::to_string(available) +
                          " bytes. It is truncated or damaged; fetch it again.",
                      tensor.info_offset);
                sound_[i] = false;
            }
            tensor.offset += header_.data_offset;
        }
        subject_.clear();
        check_overlaps();
    }

    void check_overlaps() {
        std::vector<const GgufTensor *> order;
        order.reserve(header_.tensors.size());
        for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
            if (sound_[i]) {
                order.push_back(&header_.tensors[i]);
            }
        }
        std::sort(order.begin(), order.end(),
                  [](const GgufTensor * a, const GgufTensor * b) { return a->offset < b->offset; });
        for (std::size_t i = 1; i < order.size(); ++i) {
            if (order[i]->offset < order[i - 1]->offset + order[i - 1]->nbytes) {
                subject_ = "tensor " + quoted(order[i]->name);
                fault("its data overlap those of tensor " + quoted(order[i - 1]->name) + ".", order[i]->info_offset);
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
                fault("it appears twice.", offset(items[order[i]]));
            }
        }
        subject_.clear();
        return order;
    }

    const ByteSource & source_;
    std::uint64_t size_;
    ByteWindow window_;
    std::vector<GgufFault> * faults_;
    std::uint64_t position_ = 0;
    std::uint64_t size_bytes_ = 8;
    std::string subject_;      // what a message names first
    std::vector<bool> sound_;  // of each tensor: whether its data can be looked for
    GgufHeader header_;
};

}  // namespace

GgufHeader parse_gguf(const ByteSource & source) {
    return Parser(source, nullptr).parse();
}

std::vector<GgufFault> find_gguf_faults(const ByteSource & source) {
    std::vector<GgufFault> faults;
    try {
        Parser(source, &faults).parse();
    } catch (const Error & error) {
        if (error.kind() != ErrorKind::format) {
            throw;
        }
        faults.push_back({error.message(), error.offset().value_or(0)});
    }
    return faults;
}

}  // namespace phiggml
