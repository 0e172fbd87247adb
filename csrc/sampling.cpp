#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.h"
#include "llama.h"

namespace phiggml {

namespace {

void require(bool holds, const char * name, const char * rule) {
    if (!holds) {
        throw Error(ErrorKind::input, std::string("sampling: ") + name + ": it must be " + rule + ".");
    }
}

void check(const SamplingSettings & s) {
    require(std::isfinite(s.temperature) && s.temperature >= 0, "temperature", "a finite number >= 0 (0 is greedy)");
    require(s.top_k >= 0, "top_k", ">= 0 (0 switches it off)");
    require(s.top_p > 0 && s.top_p <= 1, "top_p", "above 0 and at most 1 (1 switches it off)");
    require(s.min_p >= 0 && s.min_p <= 1, "min_p", "between 0 (off) and 1");
    require(s.typical_p > 0 && s.typical_p <= 1, "typical_p", "above 0 and at most 1 (1 switches it off)");
    require(s.repeat_penalty > 0 && s.repeat_penalty <= 100, "repeat_penalty",
            "above 0 and at most 100 (1 switches it off)");
    require(std::abs(s.frequency_penalty) <= 100, "frequency_penalty", "between -100 and 100 (0 switches it off)");
    require(std::abs(s.presence_penalty) <= 100, "presence_penalty", "between -100 and 100 (0 switches it off)");
    require(s.penalty_last_n >= 0, "penalty_last_n", ">= 0, in tokens");
}

}  // namespace

void Sampler::Free::operator()(llama_sampler * sampler) const {
    llama_sampler_free(sampler);
}

Sampler::Sampler(const SamplingSettings & settings, std::int32_t n_vocab) {
    check(settings);
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto add = [this](llama_sampler * sampler) { llama_sampler_chain_add(chain_.get(), sampler); };
    if (settings.repeat_penalty != 1 || settings.frequency_penalty != 0 || settings.presence_penalty != 0) {
        add(llama_sampler_init_penalties(n_vocab, settings.penalty_last_n, settings.repeat_penalty,
                                         settings.frequency_penalty, settings.presence_penalty));
    }
    if (settings.temperature == 0) {
        add(llama_sampler_init_greedy());
        return;
    }
    if (settings.top_k > 0) {
        add(llama_sampler_init_top_k(settings.top_k));
    }
    if (settings.typical_p < 1) {
        add(llama_sampler_init_typical(settings.typical_p, 1));
    }
    if (settings.top_p < 1) {
        add(llama_sampler_init_top_p(settings.top_p, 1));
    }
    if (settings.min_p > 0) {
        add(llama_sampler_init_min_p(settings.min_p, 1));
    }
    constexpr float least_temperature = 1e-10F;  // logits divided by less overflow
    add(llama_sampler_init_temp(std::max(settings.temperature, least_temperature)));
    add(llama_sampler_init_dist(settings.seed));
}

void Sampler::accept(const std::vector<std::int32_t> & tokens) {
    for (const std::int32_t token : tokens) {
        llama_sampler_accept(chain_.get(), token);
    }
}

std::int32_t Sampler::sample(llama_context * context) {
    return llama_sampler_sample(chain_.get(), context, -1);
}

}  // namespace phiggml
