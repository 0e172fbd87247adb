// _core.gguf: metadata become Python objects when they are asked for, tensor data become views of the mapping.
#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "gguf.h"
#include "mapped_file.h"
#include "quant_type.h"

namespace phiggml {

namespace {

using FilePointer = std::shared_ptr<GgufFile>;

// An array of strings that stays in the file until it is asked for.
struct StringArray {
    FilePointer file;
    const GgufEntry * entry;
};

// Bytes that are not UTF-8 become lone surrogates, which the writer turns back.
py::object decode_string(std::string_view text) {
    PyObject * decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "surrogateescape");
    if (decoded == nullptr) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::object>(decoded);
}

py::dtype dtype_of(GgufType type, bool big_endian) {
    const char * code = nullptr;
    switch (type) {
        case GgufType::uint8: code = "u1"; break;
        case GgufType::int8: code = "i1"; break;
        case GgufType::uint16: code = "u2"; break;
        case GgufType::int16: code = "i2"; break;
        case GgufType::uint32: code = "u4"; break;
        case GgufType::int32: code = "i4"; break;
        case GgufType::float32: code = "f4"; break;
        case GgufType::boolean: code = "?"; break;
        case GgufType::uint64: code = "u8"; break;
        case GgufType::int64: code = "i8"; break;
        case GgufType::float64: code = "f8"; break;
        case GgufType::string:
        case GgufType::array: throw Error(ErrorKind::unsupported, "decode: strings and arrays have no dtype.");
    }
    return py::dtype::from_args(py::str((big_endian ? ">" : "<") + std::string(code)));
}

void make_read_only(py::array & array) {
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

// A copy: an edit in place may move what stands in the header.
py::array decode_numbers(const GgufFile & file, const GgufEntry & entry) {
    py::array array(dtype_of(entry.type, file.header().big_endian), static_cast<py::ssize_t>(entry.count));
    auto * const out = static_cast<std::uint8_t *>(array.mutable_data());
    call_released([&] {
        file.require_unchanged();
        file.source().read(entry.offset, entry.end - entry.offset, out);
    });
    // What is not 0 or 1 any more has been written since the file was opened; numpy would misbehave on it.
    if (entry.type == GgufType::boolean) {
        std::transform(out, out + entry.count, out, [](std::uint8_t byte) { return byte != 0 ? 1 : 0; });
    }
    make_read_only(array);
    return array;
}

const GgufEntry & entry_of(const GgufFile & file, std::string_view key) {
    const GgufEntry * entry = file.find(key);
    if (entry == nullptr) {
        throw py::key_error(std::string(key));
    }
    return *entry;
}

py::object decode_one(const GgufFile & file, const GgufEntry & entry, std::uint64_t index) {
    const GgufStrings found = call_released([&] { return file.strings(entry, index, index + 1); });
    return decode_string(found.texts.front());
}

py::object decode_value(const FilePointer & file, std::string_view key) {
    const GgufEntry & entry = entry_of(*file, key);
    if (entry.type == GgufType::string) {
        return entry.is_array ? py::cast(StringArray{file, &entry}) : decode_one(*file, entry, 0);
    }
    const py::array numbers = decode_numbers(*file, entry);
    return entry.is_array ? py::object(numbers) : numbers.attr("item")(0);
}

// Type and value as a little-endian file of version 2 or 3 has them; None of any other file.
py::object raw_value(const GgufFile & file, std::string_view key) {
    const GgufEntry & entry = entry_of(file, key);
    if (file.header().big_endian || file.header().version == 1) {
        return py::none();
    }
    const std::uint64_t begin = entry.key_offset + 8 + entry.key.size();
    const std::uint64_t nbytes = entry.end - begin;
    py::bytes raw =
        py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(nbytes)));
    if (!raw) {
        throw py::error_already_set();
    }
    auto * const out = reinterpret_cast<std::uint8_t *>(PyBytes_AS_STRING(raw.ptr()));
    call_released([&] {
        file.require_unchanged();
        file.source().read(begin, nbytes, out);
    });
    return raw;
}

std::uint64_t string_count(const StringArray & strings) {
    return strings.entry->count;
}

py::object string_at(const StringArray & strings, std::uint64_t index) {
    if (index >= strings.entry->count) {
        throw py::index_error("string array index out of range");
    }
    return decode_one(*strings.file, *strings.entry, index);
}

// Strings [start, stop), which are clipped to the array.
py::list strings_between(const StringArray & strings, std::uint64_t start, std::uint64_t stop) {
    stop = std::min(stop, strings.entry->count);
    if (start >= stop) {
        return py::list();
    }
    const GgufStrings found = call_released([&] { return strings.file->strings(*strings.entry, start, stop); });
    py::list list(found.texts.size());
    for (std::size_t i = 0; i < found.texts.size(); ++i) {
        PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), decode_string(found.texts[i]).release().ptr());
    }
    return list;
}

const GgufTensor & tensor_at(const GgufFile & file, std::size_t index) {
    if (index >= file.header().tensors.size()) {
        throw py::index_error("tensor index out of range");
    }
    return file.header().tensors[index];
}

// numpy's order: the row's length last.
std::vector<std::int64_t> numpy_shape(const GgufTensor & tensor) {
    return {tensor.ne.rend() - tensor.n_dims, tensor.ne.rend()};
}

py::tuple describe_tensor(const GgufFile & file, std::size_t index) {
    const GgufTensor & tensor = tensor_at(file, index);
    return py::make_tuple(tensor.name, type_name(tensor.type), py::tuple(py::cast(numpy_shape(tensor))), tensor.offset,
                          tensor.nbytes);
}

// The view's base is the File itself, so the bytes live as long as any view; they are not writable, and numpy finds no
// writable buffer behind the base, so nobody can set the flag back. None where the bytes are not in memory.
py::object view_tensor(const py::object & self, std::size_t index) {
    const auto & file = self.cast<const GgufFile &>();
    const GgufTensor & tensor = tensor_at(file, index);
    if (file.source().data() == nullptr) {
        return py::none();
    }
    std::vector<std::int64_t> shape = numpy_shape(tensor);
    if (shape.empty()) {
        shape.push_back(0);
    }
    shape.back() = static_cast<std::int64_t>(tensor.row_bytes);
    py::array array(py::dtype::of<std::uint8_t>(), shape, file.source().data() + tensor.offset, self);
    make_read_only(array);
    return std::move(array);
}

void read_bytes(const GgufFile & file, std::size_t index, std::uint64_t start, py::array out) {
    const GgufTensor & tensor = tensor_at(file, index);
    std::uint8_t * const bytes = writable_data<std::uint8_t>(out, "read: out");
    const auto nbytes = static_cast<std::uint64_t>(out.nbytes());
    if (start > tensor.nbytes || nbytes > tensor.nbytes - start) {
        throw Error(ErrorKind::input, "read: tensor '" + tensor.name + "': the bytes lie beyond its " +
                                          std::to_string(tensor.nbytes) + ".");
    }
    call_released([&] { file.source().read_unchanged(tensor.offset + start, nbytes, bytes, file.stamp()); });
}

py::list list_keys(const GgufFile & file) {
    py::list keys;
    for (const GgufEntry & entry : file.header().entries) {
        keys.append(entry.key);
    }
    return keys;
}

// Bytes that nobody can write to are used where they lie, others copied.
FilePointer file_of_buffer(const py::buffer & buffer, const py::bytes & name) {
    auto info = std::make_shared<py::buffer_info>(buffer.request());
    if (info->ndim != 1 || info->itemsize != 1 || (info->size > 1 && info->strides[0] != 1)) {
        throw Error(ErrorKind::input, "GGUFFile: the buffer must be of contiguous bytes. Pass bytes(buffer).");
    }
    const auto * data = static_cast<const std::uint8_t *>(info->ptr);
    const auto size = static_cast<std::uint64_t>(info->size);
    std::shared_ptr<const void> owner;
    if (info->readonly) {
        owner = std::shared_ptr<const void>(info.get(), [info](const void *) mutable {
            const py::gil_scoped_acquire held;
            info.reset();
        });
    } else {
        auto copy = std::make_shared<std::vector<std::uint8_t>>(data, data + size);
        data = copy->data();
        owner = std::move(copy);
    }
    const auto source = std::make_shared<const MemoryBytes>(data, size, std::move(owner), std::string(name));
    return call_released([&] { return std::make_shared<GgufFile>(source); });
}

// The file whose first bytes these are; or, when the header goes on behind them, how many would be needed at least.
py::object file_of_front(const py::bytes & front, std::uint64_t size, const py::bytes & name) {
    const std::string_view bytes = front;
    const auto source = std::make_shared<const FileFront>(std::vector<std::uint8_t>(bytes.begin(), bytes.end()), size,
                                                          std::string(name));
    try {
        return py::cast(call_released([&] { return std::make_shared<GgufFile>(source); }));
    } catch (const FileFront::Beyond & beyond) {
        return py::int_(beyond.wanted);
    }
}

// (message, offset) of each.
py::list find_faults(const py::bytes & path) {
    const std::string name = path;
    const std::vector<GgufFault> faults = call_released([&] { return find_gguf_faults(*MappedFile::open(name)); });
    py::list found;
    for (const GgufFault & fault : faults) {
        found.append(py::make_tuple(message_text(fault.message), fault.offset));
    }
    return found;
}

}  // namespace

void register_gguf(py::module_ & m) {
    py::module_ sub = m.def_submodule("gguf", "GGUF files, read by a bounded parser.");

    py::class_<StringArray>(sub, "StringArray")
        .def("__len__", &string_count)
        .def("at", &string_at, py::arg("index"))
        .def("between", &strings_between, py::arg("start"), py::arg("stop"));

    py::class_<GgufFile, FilePointer>(sub, "File")
        .def(py::init([](const py::bytes & path) {
                 const std::string name = path;
                 return call_released([&] { return std::make_shared<GgufFile>(MappedFile::open(name)); });
             }),
             py::arg("path"))
        .def_static(
            "from_descriptor",
            [](int descriptor, const py::bytes & path) {
                const std::string name = path;
                return call_released(
                    [&] { return std::make_shared<GgufFile>(MappedFile::from_descriptor(descriptor, name)); });
            },
            py::arg("descriptor"), py::arg("name"))
        .def_static("from_buffer", &file_of_buffer, py::arg("buffer"), py::arg("name"))
        .def_static("from_front", &file_of_front, py::arg("front"), py::arg("size"), py::arg("name"))
        .def_property_readonly("version", [](const GgufFile & file) { return file.header().version; })
        .def_property_readonly("alignment", [](const GgufFile & file) { return file.header().alignment; })
        .def_property_readonly("header_end", [](const GgufFile & file) { return file.header().header_end; })
        .def_property_readonly("data_offset", [](const GgufFile & file) { return file.header().data_offset; })
        .def_property_readonly("size", [](const GgufFile & file) { return file.source().size(); })
        .def_property_readonly("is_big_endian", [](const GgufFile & file) { return file.header().big_endian; })
        .def_property_readonly("n_keys", [](const GgufFile & file) { return file.header().entries.size(); })
        .def_property_readonly("n_tensors", [](const GgufFile & file) { return file.header().tensors.size(); })
        .def("keys", &list_keys)
        .def("raw_value", &raw_value, py::arg("key"))
        .def("value", &decode_value, py::arg("key"))
        .def(
            "value_type",
            [](const GgufFile & file, std::string_view key) { return gguf_type_name(entry_of(file, key).type); },
            py::arg("key"))
        .def("tensor", &describe_tensor, py::arg("index"))
        .def("tensor_data", &view_tensor, py::arg("index"))
        .def("read_bytes", &read_bytes, py::arg("index"), py::arg("start"), py::arg("out"));
    sub.def("find_faults", &find_faults, py::arg("path"));
}

}  // namespace phiggml
