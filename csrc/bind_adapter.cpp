#include "adapter.h"
#include "bind.h"
#include "session.h"

namespace phiggml {

namespace {

std::shared_ptr<LoraAdapter> load(const std::shared_ptr<Model> & model, const std::shared_ptr<GgufFile> & file,
                                  std::size_t n_pairs) {
    return call_released([&] { return std::make_shared<LoraAdapter>(model, file, n_pairs); });
}

void set_lora(Session & session, const std::vector<std::pair<std::shared_ptr<LoraAdapter>, float>> & loras) {
    std::vector<ScaledLora> scaled;
    for (const auto & [adapter, scale] : loras) {
        scaled.push_back({adapter, scale});
    }
    call_released([&] { session.set_lora(std::move(scaled)); });
}

void set_control_vector(Session & session, const py::array & rows) {
    const float * data = contiguous_data<float>(rows, "rows");
    ControlVector vector{{data, data + rows.size()}};
    call_released([&] { session.set_control_vector(std::move(vector)); });
}

}  // namespace

void register_adapter(py::module_ & m) {
    py::module_ sub = m.def_submodule("adapter", "LoRA adapters and control vectors.");
    py::class_<LoraAdapter, std::shared_ptr<LoraAdapter>>(sub, "LoraAdapter")
        .def(py::init(&load), py::arg("model"), py::arg("file"), py::arg("n_pairs"));
    sub.def("set_lora", &set_lora, py::arg("session"), py::arg("loras"));
    sub.def("set_control_vector", &set_control_vector, py::arg("session"), py::arg("rows"));
}

}  // namespace phiggml
