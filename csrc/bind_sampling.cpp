#include "bind.h"
#include "grammar.h"
#include "logprobs.h"
#include "sampling.h"

namespace phiggml {

namespace {

const float * logits_of(const py::array & logits, py::ssize_t n_vocab) {
    const float * data = contiguous_data<float>(logits, "logits");
    if (logits.ndim() != 1 || logits.size() != n_vocab) {
        throw Error(ErrorKind::input, "logits: the array must be one row of " + std::to_string(n_vocab) +
                                          " numbers, one for each token of the model.");
    }
    return data;
}

std::unique_ptr<Sampler> make_sampler(const SamplingSettings & settings, const std::shared_ptr<Model> & model,
                                      const std::shared_ptr<Grammar> & grammar) {
    return call_released([&] {
        auto state = grammar ? std::make_unique<GrammarState>(grammar, model) : nullptr;
        return std::make_unique<Sampler>(settings, model, std::move(state));
    });
}

void accept(Sampler & sampler, const py::array & tokens) {
    const std::vector<std::int32_t> ids = token_vector(tokens);
    call_released([&] { sampler.accept(ids); });
}

std::int32_t sample(Sampler & sampler, const py::array & logits) {
    const float * data = logits_of(logits, sampler.n_vocab());
    return call_released([&] { return sampler.sample(data); });
}

std::pair<float, std::vector<std::pair<std::int32_t, float>>> logprobs(const py::array & logits, std::int32_t token,
                                                                       std::int32_t k) {
    const float * data = logits_of(logits, logits.ndim() == 1 ? logits.size() : 0);
    const auto n_vocab = static_cast<std::int32_t>(logits.size());
    const Logprobs found = call_released([&] { return log_probabilities(data, n_vocab, token, k); });
    std::vector<std::pair<std::int32_t, float>> top;
    for (const TokenLogprob & one : found.top) {
        top.emplace_back(one.token, one.logprob);
    }
    return {found.logprob, top};
}

void register_settings(py::module_ & sub) {
    using S = SamplingSettings;
    py::class_<S>(sub, "SamplingSettings")
        .def(py::init<>())
        .def_readwrite("temperature", &S::temperature)
        .def_readwrite("dynatemp_range", &S::dynatemp_range)
        .def_readwrite("dynatemp_exponent", &S::dynatemp_exponent)
        .def_readwrite("top_k", &S::top_k)
        .def_readwrite("top_p", &S::top_p)
        .def_readwrite("min_p", &S::min_p)
        .def_readwrite("typical_p", &S::typical_p)
        .def_readwrite("top_n_sigma", &S::top_n_sigma)
        .def_readwrite("xtc_probability", &S::xtc_probability)
        .def_readwrite("xtc_threshold", &S::xtc_threshold)
        .def_readwrite("dry_multiplier", &S::dry_multiplier)
        .def_readwrite("dry_base", &S::dry_base)
        .def_readwrite("dry_allowed_length", &S::dry_allowed_length)
        .def_readwrite("dry_penalty_last_n", &S::dry_penalty_last_n)
        .def_readwrite("dry_sequence_breakers", &S::dry_sequence_breakers)
        .def_readwrite("mirostat", &S::mirostat)
        .def_readwrite("mirostat_tau", &S::mirostat_tau)
        .def_readwrite("mirostat_eta", &S::mirostat_eta)
        .def_readwrite("repeat_penalty", &S::repeat_penalty)
        .def_readwrite("frequency_penalty", &S::frequency_penalty)
        .def_readwrite("presence_penalty", &S::presence_penalty)
        .def_readwrite("penalty_last_n", &S::penalty_last_n)
        .def_readwrite("logit_bias", &S::logit_bias)
        .def_readwrite("seed", &S::seed);
}

}  // namespace

void register_sampling(py::module_ & m) {
    py::module_ sub = m.def_submodule("sampling", "Choosing tokens from logits.");
    register_settings(sub);
    py::class_<Sampler>(sub, "Sampler")
        .def(py::init(&make_sampler), py::arg("settings"), py::arg("model"), py::arg("grammar"))
        .def("accept", &accept, py::arg("tokens"))
        .def("sample", &sample, py::arg("logits"));
    sub.def("logprobs", &logprobs, py::arg("logits"), py::arg("token"), py::arg("k"));
}

}  // namespace phiggml
