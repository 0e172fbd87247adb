#include "bind.h"
#include "sampling.h"
#include "session.h"

namespace phiggml {

namespace {

// Calls that read less than this from the weights end before anybody could press Ctrl-C; they stay on this thread.
constexpr std::uint64_t watched_bytes = 1 << 28;

// What ends in an exception leaves the context as it was, also where Ctrl-C came when the work was just done.
template <typename Work>
auto call(Session & session, const std::vector<Addition> & additions, Work && work) {
    const Session::Use use(session);
    session.settle();
    std::uint64_t cost = 0;
    for (const Addition & addition : additions) {
        cost += session.cost(addition.tokens.size(), addition.sequence);
    }
    Progress progress;
    try {
        if (cost < watched_bytes) {
            return call_released([&] { return work(progress); });
        }
        return call_watched(progress, py::none(), [&] { return work(progress); });
    } catch (...) {
        session.undo();
        try {
            throw;
        } catch (const Cancelled &) {
            throw Error(ErrorKind::session, "session: another thread has cancelled this call.");
        }
    }
}

py::array_t<float> eval(Session & session, const py::array & tokens, const std::vector<std::size_t> & wanted,
                        std::int64_t sequence) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    py::ssize_t n_vocab = 0;
    std::vector<float> logits = call(session, {{sequence, ids}}, [&](Progress & progress) {
        n_vocab = session.n_vocab();
        return session.eval(ids, wanted, sequence, progress);
    });
    return owned_array(std::move(logits), {static_cast<py::ssize_t>(wanted.size()), n_vocab});
}

void advance(Session & session, const std::vector<std::tuple<std::int64_t, py::array, std::size_t>> & additions) {
    std::vector<Addition> tokens;
    tokens.reserve(additions.size());
    for (const auto & [sequence, ids, n_rows] : additions) {
        tokens.push_back({sequence, token_vector(ids), n_rows});
    }
    call(session, tokens, [&](Progress & progress) { session.advance(tokens, progress); });
}

py::array_t<float> score(Session & session, const py::array & tokens, std::int64_t sequence) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    std::vector<float> logprobs =
        call(session, {{sequence, ids}}, [&](Progress & progress) { return session.score(ids, sequence, progress); });
    const auto n = static_cast<py::ssize_t>(logprobs.size());
    return owned_array(std::move(logprobs), {n});
}

std::pair<float, std::vector<std::pair<std::int32_t, float>>> logprobs(const Session & session, std::size_t row,
                                                                       std::int32_t token, std::int32_t k) {
    const Logprobs found = call_released([&] { return session.logprobs(row, token, k); });
    std::vector<std::pair<std::int32_t, float>> top;
    for (const TokenLogprob & one : found.top) {
        top.emplace_back(one.token, one.logprob);
    }
    return {found.logprob, top};
}

py::array_t<float> logits(const Session & session, std::size_t row) {
    std::vector<float> values = call_released([&] { return session.logits(row); });
    const auto n = static_cast<py::ssize_t>(values.size());
    return owned_array(std::move(values), {n});
}

std::size_t reuse(Session & session, const py::array & tokens, std::int64_t sequence) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    return call_released([&] {
        const Session::Use use(session);
        return session.reuse(ids, sequence);
    });
}

void truncate(Session & session, std::size_t n_tokens, std::int64_t sequence) {
    call_released([&] {
        const Session::Use use(session);
        session.truncate(n_tokens, sequence);
    });
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
        .def_readwrite("swa_full", &SessionSettings::swa_full)
        .def_property(
            "shifts", [](const SessionSettings & settings) { return settings.overflow == Overflow::shift; },
            [](SessionSettings & settings, bool shifts) {
                settings.overflow = shifts ? Overflow::shift : Overflow::refuse;
            })
        .def_readwrite("threads", &SessionSettings::threads);
    py::class_<Session>(sub, "Session")
        .def(py::init(&make_session), py::arg("model"), py::arg("settings"))
        .def("eval", &eval, py::arg("tokens"), py::arg("wanted"), py::arg("sequence"))
        .def("advance", &advance, py::arg("additions"))
        .def(
            "sample",
            [](Session & session, Sampler & sampler, std::size_t row) {
                return call_released([&] { return session.sample(sampler, row); });
            },
            py::arg("sampler"), py::arg("row"))
        .def("logprobs", &logprobs, py::arg("row"), py::arg("token"), py::arg("k"))
        .def("logits", &logits, py::arg("row"))
        .def("score", &score, py::arg("tokens"), py::arg("sequence"))
        .def("truncate", &truncate, py::arg("n_tokens"), py::arg("sequence"))
        .def("reuse", &reuse, py::arg("tokens"), py::arg("sequence"))
        .def(
            "fork",
            [](Session & session, std::int64_t source, std::int64_t target) {
                call_released([&] { session.fork(source, target); });
            },
            py::arg("source"), py::arg("target"))
        .def("cancel", &Session::cancel)
        .def("allow", &Session::allow)
        .def_property_readonly("rope_line", &Session::rope_line)
        .def_property_readonly("cancelled", &Session::cancelled)
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
