#include "bind.h"
#include "text_stream.h"

namespace phiggml {

void register_text_stream(py::module_ & m) {
    py::module_ sub = m.def_submodule("text_stream", "Text from the bytes of tokens.");
    py::class_<TextStream>(sub, "TextStream")
        .def(py::init([](std::vector<std::string> stops, bool strip_space) {
                 return call_released([&] { return std::make_unique<TextStream>(std::move(stops), strip_space); });
             }),
             py::arg("stops"), py::arg("strip_space"))
        .def("add", &TextStream::add, py::arg("data"))
        .def("rest", &TextStream::rest)
        .def_property_readonly("stopped", &TextStream::stopped);
}

}  // namespace phiggml
