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
    // Messages may quote bytes of a hostile file: whatever is not UTF-8 is shown escaped.
    const py::object message = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
        error.message().data(), static_cast<py::ssize_t>(error.message().size()), "backslashreplace"));
    py::object value;
    if (error.kind() == ErrorKind::format) {
        const py::object offset = error.offset() ? py::object(py::int_(*error.offset())) : py::object(py::none());
        value = type(message, py::arg("path") = path_object(error.path()), py::arg("offset") = offset);
    } else {
        value = type(message);
    }
    PyErr_SetObject(type.ptr(), value.ptr());
}

}  // namespace

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
