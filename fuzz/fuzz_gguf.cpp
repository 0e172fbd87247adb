// libFuzzer target: whatever the bytes are, the parser refuses them with an Error of its own, or what it says about
// them holds. The file is looked at whole, as a list of faults, and as a front that grows as a remote file's does.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "byte_source.h"
#include "error.h"
#include "gguf.h"
#include "gguf_text.h"
#include "quant_type.h"

namespace {

using phiggml::Error;
using phiggml::ErrorKind;
using phiggml::GgufEntry;
using phiggml::GgufFault;
using phiggml::GgufFile;
using phiggml::GgufHeader;
using phiggml::GgufStrings;
using phiggml::GgufTensor;
using phiggml::GgufType;

void require(bool holds, const char * rule) {
    if (!holds) {
        std::fprintf(stderr, "fuzz_gguf: broken: %s\n", rule);
        std::abort();
    }
}

bool is_name(std::string_view name, std::size_t longest) {
    return !name.empty() && name.size() <= longest && phiggml::is_utf8(name) &&
           name.find('\0') == std::string_view::npos;
}

void check_strings(const GgufFile & file, const GgufEntry & entry) {
    const std::uint64_t prefix = file.header().version == 1 ? 4 : 8;
    const GgufStrings all = file.strings(entry, 0, entry.count);
    require(all.texts.size() == entry.count, "all strings are there");
    std::uint64_t nbytes = 0;
    for (const std::string_view text : all.texts) {
        nbytes += prefix + text.size();
    }
    require(nbytes == entry.end - entry.offset, "strings fill their entry");
    for (const std::uint64_t index : {std::uint64_t{0}, entry.count / 2, entry.count - 1}) {
        if (index < entry.count) {
            const GgufStrings one = file.strings(entry, index, index + 1);
            require(one.texts.size() == 1 && one.texts[0] == all.texts[index], "one string is as among all");
        }
    }
}

void check_entry(const GgufFile & file, const GgufEntry & entry) {
    require(is_name(entry.key, 65535), "keys are text");
    require(file.find(entry.key) == &entry, "keys are found");
    require(phiggml::gguf_type_name(entry.type) != nullptr && entry.type != GgufType::array, "value types exist");
    require(entry.is_array || entry.count == 1, "one value where there is no array");
    require(entry.key_offset < entry.offset && entry.offset <= entry.end && entry.end <= file.source().size(),
            "values lie in the file");
    if (entry.type == GgufType::string) {
        check_strings(file, entry);
        return;
    }
    const std::uint64_t nbytes = entry.end - entry.offset;
    require(nbytes == entry.count * phiggml::gguf_type_size(entry.type), "numbers fill their entry");
    std::vector<std::uint8_t> bytes(nbytes);
    file.source().read(entry.offset, nbytes, bytes.data());
    const bool sound = std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t byte) { return byte <= 1; });
    require(entry.type != GgufType::boolean || sound, "booleans are 0 or 1");
}

void check_tensor(const GgufFile & file, const GgufTensor & tensor) {
    const GgufHeader & header = file.header();
    require(is_name(tensor.name, 63), "tensor names are text");
    require(phiggml::type_exists(tensor.type), "tensor types exist");
    require(tensor.n_dims <= 4, "at most 4 dimensions");
    const auto block = static_cast<std::uint64_t>(phiggml::block_size(tensor.type));
    // In floating point, so that a product that wrapped shows.
    long double nbytes = static_cast<long double>(phiggml::block_bytes(tensor.type)) / static_cast<long double>(block);
    for (std::uint32_t i = 0; i < 4; ++i) {
        require(tensor.ne[i] >= 1 && (i < tensor.n_dims || tensor.ne[i] == 1), "dimensions are at least 1");
        nbytes *= static_cast<long double>(tensor.ne[i]);
    }
    require(static_cast<std::uint64_t>(tensor.ne[0]) % block == 0, "rows are whole blocks");
    require(static_cast<long double>(tensor.nbytes) == nbytes, "sizes follow from shapes");
    require(tensor.nbytes % tensor.row_bytes == 0, "rows divide tensors");
    require(tensor.offset >= header.data_offset, "tensors lie behind the header");
    require((tensor.offset - header.data_offset) % header.alignment == 0, "tensors are aligned");
    const std::uint64_t size = file.source().size();
    require(tensor.offset <= size && tensor.nbytes <= size - tensor.offset, "tensors lie in the file");
}

template <typename Item, typename Name>
void require_distinct(const std::vector<Item> & items, Name name) {
    std::vector<std::string> names;
    for (const Item & item : items) {
        names.push_back(name(item));
    }
    std::sort(names.begin(), names.end());
    require(std::adjacent_find(names.begin(), names.end()) == names.end(), "names differ");
}

void check_file(const GgufFile & file) {
    const GgufHeader & header = file.header();
    require(header.version >= 1 && header.version <= 3, "versions 1 to 3");
    require(header.alignment != 0 && (header.alignment & (header.alignment - 1)) == 0, "alignment is a power of two");
    require(header.data_offset % header.alignment == 0, "data are aligned");
    for (const GgufEntry & entry : header.entries) {
        check_entry(file, entry);
    }
    for (const GgufTensor & tensor : header.tensors) {
        check_tensor(file, tensor);
    }
    require_distinct(header.entries, [](const GgufEntry & entry) { return entry.key; });
    require_distinct(header.tensors, [](const GgufTensor & tensor) { return tensor.name; });
    for (const GgufTensor & a : header.tensors) {
        for (const GgufTensor & b : header.tensors) {
            require(&a == &b || a.offset + a.nbytes <= b.offset || b.offset + b.nbytes <= a.offset,
                    "tensors do not overlap");
        }
        if (header.tensors.size() > 1000) {
            break;  // the pairs of so many take too long
        }
    }
    require(file.find("") == nullptr && file.find("no such key, surely") == nullptr, "absent keys are not found");
}

// The error that the whole file ends in; none when it was accepted.
std::optional<Error> open_whole(const std::shared_ptr<const phiggml::MemoryBytes> & source) {
    try {
        check_file(GgufFile(source));
    } catch (const Error & error) {
        require(error.kind() == ErrorKind::format, "refusals are of one kind");
        require(error.offset().has_value() && *error.offset() <= source->size(), "refusals say where");
        require(!error.message().empty() && error.path() == source->name(), "refusals say what, and of which file");
        return error;
    }
    return std::nullopt;
}

void check_faults(const phiggml::MemoryBytes & source, const std::optional<Error> & error) {
    const std::vector<GgufFault> faults = phiggml::find_gguf_faults(source);
    require(faults.empty() == !error.has_value(), "what has no faults is accepted");
    for (const GgufFault & fault : faults) {
        require(fault.offset <= source.size() && !fault.message.empty(), "faults say where and what");
    }
    if (error.has_value()) {
        const std::string & message = error->message();
        const std::string & first = faults.front().message;
        require(faults.front().offset == error->offset() && message.size() >= first.size() &&
                    message.compare(message.size() - first.size(), first.size(), first) == 0,
                "the first fault is what refuses the file");
    }
}

// As over a network: begin with few bytes, and fetch what is asked for.
void check_front(const std::uint8_t * data, std::uint64_t size, const std::optional<Error> & error) {
    std::uint64_t at_hand = std::min<std::uint64_t>(size, 16);
    while (true) {
        const phiggml::FileFront front(std::vector<std::uint8_t>(data, data + at_hand), size, "front");
        try {
            phiggml::parse_gguf(front);
            require(!error.has_value(), "a front is refused as the whole is");
            return;
        } catch (const phiggml::FileFront::Beyond & beyond) {
            require(beyond.wanted > at_hand && beyond.wanted <= size, "what a front asks for is there");
            at_hand = std::min(size, std::max(beyond.wanted, 2 * at_hand));
        } catch (const Error & other) {
            require(error.has_value() && error->offset() == other.offset(), "a front is refused as the whole is");
            return;
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t * data, std::size_t size) {
    const auto source = std::make_shared<const phiggml::MemoryBytes>(data, size, nullptr, "input");
    const std::optional<Error> error = open_whole(source);
    check_faults(*source, error);
    check_front(data, size, error);
    return 0;
}
