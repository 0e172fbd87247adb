#include "bind.h"
#include "sampling.h"
#include "session.h"

namespace phiggml {

namespace {

// Calls that read less than this from the weights end before anybody could press Ctrl-C; they stay on this thread.
constexpr std::uint64_t watched_bytes = 1 << 28;

// What ends in an exception leaves the context as it was, also where Ctrl-C came when the work was just done.
template <typename Work>
auto call(Session & session, std::int64_t sequence, std::size_t n_tokens, Work && work) {
    const Session::Use use(session);
    const std::size_t n_before = session.n_tokens(sequence);
    Progress progress;
    try {
        if (session.cost(n_tokens, sequence) < watched_bytes) {
            return call_released([&] { return work(progress); });
        }
        return call_watched(progress, py::none(), [&] { return work(progress); });
    } catch (...) {
        session.truncate(n_before, sequence);
        throw;
    }
}

py::array_t<float> eval(Session & session, const py::array & tokens, bool all_logits, std::int64_t sequence) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    std::vector<float> logits = call(session, sequence, ids.size(), [&](Progress & progress) {
        return session.eval(ids, all_logits, sequence, progress);
    });
    const std::size_t n_rows = all_logits ? ids.size() : 1;
    const auto n_columns = static_cast<py::ssize_t>(logits.size() / n_rows);
    return owned_array(std::move(logits), {static_cast<py::ssize_t>(n_rows), n_columns});
}

void prefill(Session & session, const py::array & tokens) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    call(session, 0, ids.size(), [&](Progress & progress) { session.prefill(ids, progress); });
}

py::array_t<std::int32_t> session_tokens(const Session & session, std::int64_t sequence) {
    std::vector<std::int32_t> tokens = session.tokens(sequence);
    const auto n = static_cast<py::ssize_t>(tokens.size());
    return owned_array(std::move(tokens), {n});
}

std::unique_ptr<Session> make_session(const std::shared_ptr<Model> & model, const SessionSettings & settings) {
    return call_released([&] { return std::make_unique<Session>(model, settings); });
}

}  // namespace

void register_session(py::module_ & m) {
    py::module_ sub = m.def_submodule("session", "Contexts over a model.");
    py::class_<SessionSettings>(sub, "SessionSettings")
        .def(py::init<>())
        .def_readwrite("n_ctx", &SessionSettings::n_ctx)
        .def_readwrite("n_batch", &SessionSettings::n_batch)
        .def_readwrite("n_seq_max", &SessionSettings::n_seq_max)
        .def_readwrite("type_k", &SessionSettings::type_k)
        .def_readwrite("type_v", &SessionSettings::type_v)
        .def_readwrite("flash_attn", &SessionSettings::flash_attn)
        .def_readwrite("offload_kv", &SessionSettings::offload_kv)
        .def_readwrite("threads", &SessionSettings::threads);
    py::class_<Session>(sub, "Session")
        .def(py::init(&make_session), py::arg("model"), py::arg("settings"))
        .def("eval", &eval, py::arg("tokens"), py::arg("all_logits"), py::arg("sequence"))
        .def("prefill", &prefill, py::arg("tokens"))
        .def(
            "sample",
            [](Session & session, Sampler & sampler) { return call_released([&] { return session.sample(sampler); }); },
            py::arg("sampler"))
        .def("reset", [](Session & session) { call_released([&] { session.reset(); }); })
        .def(
            "reset_sequence",
            [](Session & session, std::int64_t sequence) { call_released([&] { session.reset(sequence); }); },
            py::arg("sequence"))
        .def("close", [](Session & session) { call_released([&] { session.close(); }); })
        .def_property_readonly("closed", &Session::closed)
        .def_property_readonly("n_ctx", &Session::n_ctx)
        .def("tokens", &session_tokens, py::arg("sequence"));
}

}  // namespace phiggml
