#include "bind.h"
#include "model.h"

namespace phiggml {

namespace {

std::shared_ptr<Model> load(const ModelSettings & settings, const py::object & on_progress) {
    Progress progress;
    return call_watched(progress, on_progress, [&] { return std::make_shared<Model>(settings, progress); });
}

py::array_t<std::int32_t> tokenize(const Model & model, const std::string & text, bool add_special,
                                   bool parse_special) {
    std::vector<std::int32_t> tokens = call_released([&] { return model.tokenize(text, add_special, parse_special); });
    const auto n = static_cast<py::ssize_t>(tokens.size());
    return owned_array(std::move(tokens), {n});
}

py::bytes detokenize(const Model & model, const py::array & tokens, bool special) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    return py::bytes(call_released([&] { return model.detokenize(ids, special); }));
}

}  // namespace

void register_model(py::module_ & m) {
    py::module_ sub = m.def_submodule("model", "Models loaded by llama.cpp.");
    py::class_<ModelSettings>(sub, "ModelSettings")
        .def(py::init<>())
        .def_property(
            "path", [](const ModelSettings & settings) { return py::bytes(settings.path); },
            [](ModelSettings & settings, const py::bytes & path) { settings.path = path; })
        .def_readwrite("files", &ModelSettings::files)
        .def_readwrite("n_gpu_layers", &ModelSettings::n_gpu_layers)
        .def_readwrite("devices", &ModelSettings::devices)
        .def_readwrite("tensor_split", &ModelSettings::tensor_split)
        .def_readwrite("split_mode", &ModelSettings::split_mode)
        .def_readwrite("tensor_overrides", &ModelSettings::tensor_overrides)
        .def_readwrite("use_mmap", &ModelSettings::use_mmap)
        .def_readwrite("use_mlock", &ModelSettings::use_mlock);
    py::class_<upstream::TensorPlace>(sub, "TensorPlace")
        .def_readonly("name", &upstream::TensorPlace::name)
        .def_readonly("device", &upstream::TensorPlace::device)
        .def_readonly("n_bytes", &upstream::TensorPlace::n_bytes);
    py::class_<Model, std::shared_ptr<Model>>(sub, "Model")
        .def("tokenize", &tokenize, py::arg("text"), py::arg("add_special"), py::arg("parse_special"))
        .def("detokenize", &detokenize, py::arg("tokens"), py::arg("special"))
        .def(
            "piece",
            [](const Model & model, std::int32_t token, bool special) {
                return py::bytes(model.piece(token, special));
            },
            py::arg("token"), py::arg("special"))
        .def("is_end_of_generation", &Model::is_end_of_generation, py::arg("token"))
        .def("is_control", &Model::is_control, py::arg("token"))
        .def_property_readonly("n_vocab", &Model::n_vocab)
        .def_property_readonly("n_ctx_train", &Model::n_ctx_train)
        .def_property_readonly("n_layer", &Model::n_layer)
        .def_property_readonly("n_embd", &Model::n_embd)
        .def_property_readonly("n_params", &Model::n_params)
        .def_property_readonly("n_bytes", &Model::n_bytes)
        .def_property_readonly("description", &Model::description);
    sub.def("load", &load, py::arg("settings"), py::arg("on_progress"));
}

}  // namespace phiggml
