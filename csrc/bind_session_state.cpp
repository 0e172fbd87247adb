#include "bind.h"
#include "session_state.h"

namespace phiggml {

namespace {

std::unique_ptr<SessionState> open(Session & session, std::int64_t sequence) {
    return call_released([&] { return std::make_unique<SessionState>(session, sequence); });
}

py::array_t<std::int32_t> tokens(const SessionState & state) {
    std::vector<std::int32_t> copied = state.tokens();
    const auto n = static_cast<py::ssize_t>(copied.size());
    return owned_array(std::move(copied), {n});
}

std::vector<std::pair<int, std::uint64_t>> segments(const SessionState & state) {
    std::vector<std::pair<int, std::uint64_t>> found;
    for (const StateSegment & segment : state.segments()) {
        found.emplace_back(segment.type, segment.n_bytes);
    }
    return found;
}

void read(const SessionState & state, std::uint64_t offset, py::array & out) {
    auto * bytes = writable_data<std::uint8_t>(out, "out");
    const auto n_bytes = static_cast<std::size_t>(out.size());
    call_released([&] { state.read(offset, bytes, n_bytes); });
}

void begin(SessionState & state, const py::array & ids, std::size_t n_evaluated, bool beyond_line) {
    std::vector<std::int32_t> copied = token_vector(ids);
    call_released([&] { state.begin(std::move(copied), n_evaluated, beyond_line); });
}

void write(SessionState & state, std::uint64_t offset, const py::array & numbers) {
    const auto * bytes = contiguous_data<std::uint8_t>(numbers, "numbers");
    const auto n_bytes = static_cast<std::size_t>(numbers.size());
    call_released([&] { state.write(offset, bytes, n_bytes); });
}

bool finite(int type, const py::array & blocks) {
    const auto * bytes = contiguous_data<std::uint8_t>(blocks, "blocks");
    const auto n_bytes = static_cast<std::size_t>(blocks.size());
    return call_released([&] { return has_finite_numbers(type, bytes, n_bytes); });
}

}  // namespace

void register_session_state(py::module_ & m) {
    py::module_ sub = m.def_submodule("session_state", "What a session holds of one sequence, to save and load it.");
    py::class_<SessionState>(sub, "SessionState")
        .def(py::init(&open), py::arg("session"), py::arg("sequence"), py::keep_alive<1, 2>())
        .def_property_readonly("tokens", &tokens)
        .def_property_readonly("n_evaluated", &SessionState::n_evaluated)
        .def_property_readonly("beyond_line", &SessionState::beyond_line)
        .def_property_readonly("type_k", &SessionState::type_k)
        .def_property_readonly("type_v", &SessionState::type_v)
        .def_property_readonly("transposed", &SessionState::transposed)
        .def_property_readonly("layout", [](const SessionState & state) { return py::bytes(state.layout()); })
        .def_property_readonly("token_bytes", &SessionState::token_bytes)
        .def("takes_numbers", &SessionState::takes_numbers, py::arg("n_tokens"))
        .def_property_readonly("segments", &segments)
        .def("read", &read, py::arg("offset"), py::arg("out"))
        .def("begin", &begin, py::arg("tokens"), py::arg("n_evaluated"), py::arg("beyond_line"))
        .def("write", &write, py::arg("offset"), py::arg("numbers"))
        .def("finish", [](SessionState & state) { call_released([&] { state.finish(); }); })
        .def("close", [](SessionState & state) { call_released([&] { state.close(); }); });
    sub.def("has_finite_numbers", &finite, py::arg("type"), py::arg("blocks"));
}

}  // namespace phiggml
