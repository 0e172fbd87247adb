// _core.gguf: metadata become Python objects when they are asked for, tensor data become views of the mapping.
#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "gguf.h"
#include "quant.h"

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

py::dtype dtype_of(GgufType type) {
    const char * code = nullptr;
    switch (type) {
        case GgufType::uint8: code = "<u1"; break;
        case GgufType::int8: code = "<i1"; break;
        case GgufType::uint16: code = "<u2"; break;
        case GgufType::int16: code = "<i2"; break;
        case GgufType::uint32: code = "<u4"; break;
        case GgufType::int32: code = "<i4"; break;
        case GgufType::float32: code = "<f4"; break;
        case GgufType::boolean: code = "?"; break;
        case GgufType::uint64: code = "<u8"; break;
        case GgufType::int64: code = "<i8"; break;
        case GgufType::float64: code = "<f8"; break;
        case GgufType::string:
        case GgufType::array: throw Error(ErrorKind::unsupported, "decode: strings and arrays have no dtype.");
    }
    return py::dtype::from_args(py::str(code));
}

void make_read_only(py::array & array) {
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

// A copy: values in the header are not aligned.
py::array decode_numbers(const GgufFile & file, const GgufEntry & entry) {
    py::array array(dtype_of(entry.type), static_cast<py::ssize_t>(entry.count), file.file().data() + entry.offset);
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

py::object decode_value(const FilePointer & file, std::string_view key) {
    const GgufEntry & entry = entry_of(*file, key);
    if (entry.type == GgufType::string) {
        return entry.is_array ? py::cast(StringArray{file, &entry}) : decode_string(file->string_at(entry, 0));
    }
    const py::array numbers = decode_numbers(*file, entry);
    return entry.is_array ? py::object(numbers) : numbers.attr("item")();
}

std::uint64_t string_count(const StringArray & strings) {
    return strings.entry->count;
}

py::object string_at(const StringArray & strings, std::uint64_t index) {
    if (index >= strings.entry->count) {
        throw py::index_error("string array index out of range");
    }
    return decode_string(strings.file->string_at(*strings.entry, index));
}

// Strings [start, stop), which are clipped to the array.
py::list strings_between(const StringArray & strings, std::uint64_t start, std::uint64_t stop) {
    stop = std::min(stop, strings.entry->count);
    if (start >= stop) {
        return py::list();
    }
    py::list list(static_cast<py::ssize_t>(stop - start));
    const std::uint64_t stride = GgufEntry::string_stride;
    std::uint64_t position = strings.entry->string_marks[start / stride];
    for (std::uint64_t skip = start % stride; skip > 0; --skip) {
        strings.file->next_string(position);
    }
    for (std::uint64_t i = start; i < stop; ++i) {
        PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i - start),
                        decode_string(strings.file->next_string(position)).release().ptr());
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

// The view's base is the File itself, so the mapping lives as long as any view; its pages are not writable, and numpy
// finds no writable buffer behind the base, so nobody can set the flag back.
py::array view_tensor(const py::object & self, std::size_t index) {
    const auto & file = self.cast<const GgufFile &>();
    const GgufTensor & tensor = tensor_at(file, index);
    std::vector<std::int64_t> shape = numpy_shape(tensor);
    if (shape.empty()) {
        shape.push_back(0);
    }
    shape.back() = static_cast<std::int64_t>(tensor.row_bytes);
    py::array array(py::dtype::of<std::uint8_t>(), shape, file.file().data() + tensor.offset, self);
    make_read_only(array);
    return array;
}

void read_tensor(const GgufFile & file, std::size_t index, std::uint64_t start_row, py::array out) {
    const GgufTensor & tensor = tensor_at(file, index);
    std::uint8_t * const bytes = writable_data<std::uint8_t>(out, "read: out");
    const std::uint64_t start = start_row * tensor.row_bytes;
    const auto nbytes = static_cast<std::uint64_t>(out.nbytes());
    if (start_row > tensor.nbytes / tensor.row_bytes || nbytes > tensor.nbytes - start) {
        throw Error(ErrorKind::input, "read: tensor '" + tensor.name + "': the rows lie beyond its " +
                                          std::to_string(tensor.nbytes / tensor.row_bytes) + " rows.");
    }
    call_released([&] { file.file().read(tensor.offset + start, nbytes, bytes); });
}

py::list list_keys(const GgufFile & file) {
    py::list keys;
    for (const GgufEntry & entry : file.header().entries) {
        keys.append(entry.key);
    }
    return keys;
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
        .def_property_readonly("version", [](const GgufFile & file) { return file.header().version; })
        .def_property_readonly("alignment", [](const GgufFile & file) { return file.header().alignment; })
        .def_property_readonly("data_offset", [](const GgufFile & file) { return file.header().data_offset; })
        .def_property_readonly("size", [](const GgufFile & file) { return file.file().size(); })
        .def_property_readonly("n_keys", [](const GgufFile & file) { return file.header().entries.size(); })
        .def_property_readonly("n_tensors", [](const GgufFile & file) { return file.header().tensors.size(); })
        .def("keys", &list_keys)
        .def("value", &decode_value, py::arg("key"))
        .def(
            "value_type",
            [](const GgufFile & file, std::string_view key) { return gguf_type_name(entry_of(file, key).type); },
            py::arg("key"))
        .def("tensor", &describe_tensor, py::arg("index"))
        .def("tensor_data", &view_tensor, py::arg("index"))
        .def("read_tensor", &read_tensor, py::arg("index"), py::arg("start_row"), py::arg("out"));
}

}  // namespace phiggml
