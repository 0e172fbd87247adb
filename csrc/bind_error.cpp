#include <cstdio>
#include <cstring>

#include "bind.h"

namespace phiggml {

namespace {

const char * class_name(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::input: return "InputError";
        case ErrorKind::format: return "FormatError";
        case ErrorKind::unsupported: return "UnsupportedError";
        case ErrorKind::device: return "DeviceError";
        case ErrorKind::session: return "SessionError";
        case ErrorKind::system: break;
    }
    return "PhiggmlError";
}

// Paths are bytes to the system; Python's own rule for those that are no UTF-8 keeps them usable.
py::object path_object(const std::string & path) {
    if (path.empty()) {
        return py::none();
    }
    return py::reinterpret_steal<py::object>(
        PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<py::ssize_t>(path.size())));
}

void raise(const Error & error) {
    if (error.kind() == ErrorKind::system) {
        const py::object type = py::module_::import("builtins").attr("OSError");
        const py::object value = type(error.code(), std::strerror(error.code()), path_object(error.path()));
        PyErr_SetObject(reinterpret_cast<PyObject *>(Py_TYPE(value.ptr())), value.ptr());
        return;
    }
    const py::object type = py::module_::import("phiggml.errors").attr(class_name(error.kind()));
    const py::str message = message_text(error.message());
    py::object value;
    if (error.kind() == ErrorKind::format) {
        const py::object offset = error.offset() ? py::object(py::int_(*error.offset())) : py::object(py::none());
        value = type(message, py::arg("path") = path_object(error.path()), py::arg("offset") = offset);
    } else {
        value = type(message);
    }
    PyErr_SetObject(type.ptr(), value.ptr());
}

std::u32string escaped(Py_UCS4 character) {
    char digits[11];
    const int width = character > 0xffff ? 8 : character > 0xff ? 4 : 2;
    const char letter = width == 8 ? 'U' : width == 4 ? 'u' : 'x';
    const int length =
        std::snprintf(digits, sizeof digits, "\\%c%0*x", letter, width, static_cast<unsigned>(character));
    return {digits, digits + length};
}

}  // namespace

py::str message_text(std::string_view message) {
    const auto decoded = py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(message.data(), static_cast<py::ssize_t>(message.size()), "backslashreplace"));
    if (!decoded) {
        throw py::error_already_set();
    }
    std::u32string text;
    for (py::ssize_t i = 0; i < PyUnicode_GET_LENGTH(decoded.ptr()); ++i) {
        const Py_UCS4 character = PyUnicode_READ_CHAR(decoded.ptr(), i);
        if (character == '\n' || Py_UNICODE_ISPRINTABLE(character) != 0) {
            text += static_cast<char32_t>(character);
        } else {
            text += escaped(character);
        }
    }
    auto shown = py::reinterpret_steal<py::str>(
        PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<py::ssize_t>(text.size())));
    if (!shown) {
        throw py::error_already_set();
    }
    return shown;
}

void register_error(py::module_ &) {
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const Error & error) {
            raise(error);
        }
    });
}

}  // namespace phiggml
