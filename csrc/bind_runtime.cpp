#include "bind.h"
#include "runtime.h"

namespace phiggml {

namespace {

std::vector<std::pair<int, py::str>> take_log_text() {
    std::vector<std::pair<int, py::str>> lines;
    for (const LogRecord & record : take_log()) {
        lines.emplace_back(record.level, message_text(record.text));
    }
    return lines;
}

}  // namespace

void register_runtime(py::module_ & m) {
    capture_log();
    watch_forks();
    py::module_::import("atexit").attr("register")(py::cpp_function([] {
        const Released released;
        shut_down();
    }));
    py::module_ sub = m.def_submodule("runtime", "Backends, devices and upstream's log.");
    py::class_<DeviceInfo>(sub, "DeviceInfo")
        .def_readonly("name", &DeviceInfo::name)
        .def_readonly("description", &DeviceInfo::description)
        .def_readonly("backend", &DeviceInfo::backend)
        .def_readonly("kind", &DeviceInfo::kind)
        .def_readonly("memory_total", &DeviceInfo::memory_total)
        .def_readonly("memory_free", &DeviceInfo::memory_free);
    sub.def("take_log", &take_log_text);
    sub.def(
        "load_backends",
        [](const std::string & folder, const std::string & cpu_variant) {
            call_released([&] { load_backends(folder, cpu_variant); });
        },
        py::arg("folder"), py::arg("cpu_variant"));
    sub.def(
        "load_backend",
        [](const std::string & path) {
            const LoadedBackend backend = call_released([&] { return load_backend(path); });
            return py::make_tuple(backend.loaded, backend.n_devices, message_text(backend.complaint));
        },
        py::arg("path"));
    sub.def("is_whole", [](const py::bytes & library) { return is_whole(library); }, py::arg("library"));
    sub.def("build_id", &build_id);
    sub.def("list_devices", [] { return call_released([] { return list_devices(); }); });
    sub.def("cpu_module", [] { return message_text(cpu_module()); });
    sub.def("cpu_features", &cpu_features);
    sub.def("versions", &versions);
}

}  // namespace phiggml
