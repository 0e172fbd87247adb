#include "bind.h"
#include "prompt_lookup.h"

namespace phiggml {

namespace {

py::array_t<std::int32_t> propose_tokens(const py::array & tokens, std::size_t ngram, std::size_t n_most) {
    const auto * data = contiguous_data<std::int32_t>(tokens, "tokens");
    const auto n_tokens = static_cast<std::size_t>(tokens.size());
    std::vector<std::int32_t> found = call_released([&] { return propose(data, n_tokens, ngram, n_most); });
    const auto n = static_cast<py::ssize_t>(found.size());
    return owned_array(std::move(found), {n});
}

}  // namespace

void register_prompt_lookup(py::module_ & m) {
    py::module_ sub = m.def_submodule("prompt_lookup", "Guesses that a text repeats what it has had before.");
    sub.def("propose", &propose_tokens, py::arg("tokens"), py::arg("ngram"), py::arg("n_most"));
}

}  // namespace phiggml
