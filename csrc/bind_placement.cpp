#include "bind.h"
#include "placement.h"

namespace phiggml {

namespace {

Placement plan(const ModelSettings & model, const SessionSettings & session) {
    return call_released([&] { return plan_placement(model, session); });
}

}  // namespace

void register_placement(py::module_ & m) {
    py::module_ sub = m.def_submodule("placement", "What lies where, before anything is loaded.");
    py::class_<DeviceBytes>(sub, "DeviceBytes")
        .def(py::init<>())
        .def_readonly("device", &DeviceBytes::device)
        .def_readonly("weights", &DeviceBytes::weights)
        .def_readonly("kv", &DeviceBytes::kv)
        .def_readonly("compute", &DeviceBytes::compute);
    py::class_<Placement>(sub, "Placement")
        .def_readonly("tensors", &Placement::tensors)
        .def_readonly("devices", &Placement::devices);
    sub.def("of", &placement_of, py::arg("model"), py::arg("devices"));
    sub.def("plan", &plan, py::arg("model"), py::arg("session"));
}

}  // namespace phiggml
