#include "bind.h"
#include "recipe.h"

namespace phiggml {

namespace {

void register_questions(py::module_ & sub) {
    py::class_<ModelShape>(sub, "ModelShape")
        .def(py::init([](std::string architecture, std::uint32_t n_layer, std::uint32_t n_head, std::uint32_t n_head_kv,
                         std::uint32_t n_expert, std::uint32_t n_embd, std::uint32_t n_ff) {
                 return ModelShape{std::move(architecture), n_layer, n_head, n_head_kv, n_expert, n_embd, n_ff};
             }),
             py::kw_only(), py::arg("architecture"), py::arg("n_layer"), py::arg("n_head"), py::arg("n_head_kv"),
             py::arg("n_expert"), py::arg("n_embd"), py::arg("n_ff"));
    py::class_<RecipeRules>(sub, "RecipeRules")
        .def(py::init([](std::string type, bool pure, bool quantize_output, std::string output_type, bool has_imatrix,
                         bool in_order) {
                 return RecipeRules{std::move(type),        pure,        quantize_output,
                                    std::move(output_type), has_imatrix, in_order};
             }),
             py::kw_only(), py::arg("type"), py::arg("pure"), py::arg("quantize_output"), py::arg("output_type"),
             py::arg("has_imatrix"), py::arg("in_order"));
    py::class_<RecipeTensor>(sub, "RecipeTensor")
        .def(py::init(
                 [](std::string name, std::vector<std::int64_t> shape, std::string type, std::string override_type) {
                     return RecipeTensor{std::move(name), std::move(shape), std::move(type), std::move(override_type)};
                 }),
             py::kw_only(), py::arg("name"), py::arg("shape"), py::arg("type"), py::arg("override_type"));
}

}  // namespace

void register_recipe(py::module_ & m) {
    py::module_ sub = m.def_submodule("recipe", "Which tensor of a model gets which type.");
    register_questions(sub);
    py::class_<PlannedTensor>(sub, "PlannedTensor")
        .def_readonly("index", &PlannedTensor::index)
        .def_readonly("allowed", &PlannedTensor::allowed)
        .def_readonly("type", &PlannedTensor::type)
        .def_readonly("requires_imatrix", &PlannedTensor::requires_imatrix)
        .def_readonly("requantized", &PlannedTensor::requantized)
        .def_readonly("source_row_bytes", &PlannedTensor::source_row_bytes)
        .def_readonly("row_bytes", &PlannedTensor::row_bytes)
        .def_readonly("fault", &PlannedTensor::fault);
    sub.def("model_types", [] {
        py::list types;
        for (const ModelType & type : model_types()) {
            types.append(py::make_tuple(type.name, type.file_type));
        }
        return types;
    });
    sub.def("quantization_version", &quantization_version);
    sub.def(
        "plan_types",
        [](const ModelShape & model, const RecipeRules & rules, const std::vector<RecipeTensor> & tensors) {
            return call_released([&] { return plan_types(model, rules, tensors); });
        },
        py::arg("model"), py::arg("rules"), py::arg("tensors"));
}

}  // namespace phiggml
