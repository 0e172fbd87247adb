#include "bind.h"
#include "grammar.h"
#include "json_schema.h"
#include "model.h"

namespace phiggml {

namespace {

py::array_t<std::uint8_t> allowed(const GrammarState & state) {
    std::vector<std::uint8_t> tokens = call_released([&] { return state.allowed(); });
    const auto n = static_cast<py::ssize_t>(tokens.size());
    return owned_array(std::move(tokens), {n});
}

}  // namespace

void register_grammar(py::module_ & m) {
    py::module_ sub = m.def_submodule("grammar", "What an answer may be.");
    py::class_<Grammar, std::shared_ptr<Grammar>>(sub, "Grammar").def_property_readonly("text", &Grammar::text);
    py::class_<GrammarState>(sub, "GrammarState")
        .def(py::init([](const std::shared_ptr<Grammar> & grammar, const std::shared_ptr<Model> & model) {
                 return call_released([&] { return std::make_unique<GrammarState>(grammar, model); });
             }),
             py::arg("grammar"), py::arg("model"))
        .def(
            "allows",
            [](const GrammarState & state, std::int32_t token) {
                return call_released([&] { return state.allows(token); });
            },
            py::arg("token"))
        .def("allowed", &allowed)
        .def("may_end", &GrammarState::may_end)
        .def(
            "accept", [](GrammarState & state, std::int32_t token) { call_released([&] { state.accept(token); }); },
            py::arg("token"));
    sub.def(
        "parse",
        [](const std::string & gbnf) {
            return call_released([&] { return std::const_pointer_cast<Grammar>(Grammar::parse(gbnf)); });
        },
        py::arg("gbnf"));
    sub.def(
        "json_schema_to_gbnf",
        [](const std::string & schema) { return call_released([&] { return json_schema_to_gbnf(schema); }); },
        py::arg("schema"));
}

}  // namespace phiggml
