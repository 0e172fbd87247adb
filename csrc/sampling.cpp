#include "sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "error.h"
#include "grammar.h"
#include "llama.h"

namespace phiggml {

namespace {

void require(bool holds, const char * name, const std::string & rule) {
    if (!holds) {
        throw Error(ErrorKind::input, std::string("sampling: ") + name + ": it must be " + rule + ".");
    }
}

void check_chain(const SamplingSettings & s) {
    require(std::isfinite(s.temperature) && s.temperature >= 0, "temperature", "a finite number >= 0 (0 is greedy)");
    require(std::isfinite(s.temperature + s.dynatemp_range) && s.dynatemp_range >= 0, "dynatemp_range",
            "a finite number >= 0 (0 switches it off)");
    require(s.dynatemp_exponent >= 0 && s.dynatemp_exponent <= 100, "dynatemp_exponent", "between 0 and 100");
    require(s.top_k >= 0, "top_k", ">= 0 (0 switches it off)");
    require(s.top_p > 0 && s.top_p <= 1, "top_p", "above 0 and at most 1 (1 switches it off)");
    require(s.min_p >= 0 && s.min_p <= 1, "min_p", "between 0 (off) and 1");
    require(s.typical_p > 0 && s.typical_p <= 1, "typical_p", "above 0 and at most 1 (1 switches it off)");
    require(std::isfinite(s.top_n_sigma) && s.top_n_sigma >= 0, "top_n_sigma",
            "a finite number >= 0 (0 switches it off)");
    require(s.xtc_probability >= 0 && s.xtc_probability <= 1, "xtc_probability", "between 0 (off) and 1");
    require(s.xtc_threshold >= 0 && s.xtc_threshold <= 1, "xtc_threshold", "between 0 and 1 (above 0.5 is off)");
    require(s.mirostat >= 0 && s.mirostat <= 2, "mirostat", "0 (off), 1 or 2");
    require(std::isfinite(s.mirostat_tau) && s.mirostat_tau > 0, "mirostat_tau", "a finite number above 0, in bits");
    require(std::isfinite(s.mirostat_eta) && s.mirostat_eta >= 0, "mirostat_eta", "a finite number >= 0");
}

void check_repetition(const SamplingSettings & s) {
    require(s.repeat_penalty > 0 && s.repeat_penalty <= 100, "repeat_penalty",
            "above 0 and at most 100 (1 switches it off)");
    require(std::abs(s.frequency_penalty) <= 100, "frequency_penalty", "between -100 and 100 (0 switches it off)");
    require(std::abs(s.presence_penalty) <= 100, "presence_penalty", "between -100 and 100 (0 switches it off)");
    require(s.penalty_last_n >= 0, "penalty_last_n", ">= 0, in tokens");
    require(std::isfinite(s.dry_multiplier) && s.dry_multiplier >= 0, "dry_multiplier",
            "a finite number >= 0 (0 switches it off)");
    require(std::isfinite(s.dry_base) && s.dry_base >= 1, "dry_base", "a finite number >= 1");
    require(s.dry_allowed_length >= 1, "dry_allowed_length", ">= 1, in tokens");
    require(s.dry_penalty_last_n >= 0, "dry_penalty_last_n", ">= 0, in tokens");
    constexpr std::size_t most_breakers = 64, most_bytes = 256;
    require(s.dry_sequence_breakers.size() <= most_breakers, "dry_sequence_breakers",
            "at most " + std::to_string(most_breakers) + " texts");
    for (const std::string & breaker : s.dry_sequence_breakers) {
        require(!breaker.empty() && breaker.size() <= most_bytes, "dry_sequence_breakers",
                "texts of 1 to " + std::to_string(most_bytes) + " bytes each");
    }
}

void check_bias(const SamplingSettings & s, std::int32_t n_vocab) {
    for (const auto & [token, bias] : s.logit_bias) {
        const std::string which = "token " + std::to_string(token);
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "sampling: logit_bias: " + which + " is not in the vocabulary of " +
                                              std::to_string(n_vocab) + ".");
        }
        require(bias < INFINITY, "logit_bias", "a finite number for " + which + ", or -inf to ban it");
    }
}

bool penalizes(const SamplingSettings & s) {
    return s.penalty_last_n > 0 && (s.repeat_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0);
}

bool is_greedy(const SamplingSettings & s) {
    return s.temperature == 0 && (s.dynatemp_range == 0 || s.mirostat != 0);
}

// XTC can only drop something where two tokens can reach the threshold.
bool has_xtc(const SamplingSettings & s) {
    return s.xtc_probability > 0 && s.xtc_threshold <= 0.5F && s.mirostat == 0 && !is_greedy(s);
}

class Alone {
public:
    explicit Alone(std::atomic<bool> & in_use) : in_use_(in_use) {
        if (in_use_.exchange(true)) {
            throw Error(ErrorKind::session, "sampling: another thread is using this sampler. Give each its own.");
        }
    }
    ~Alone() { in_use_ = false; }
    Alone(const Alone &) = delete;
    Alone & operator=(const Alone &) = delete;

private:
    std::atomic<bool> & in_use_;
};

}  // namespace

Sampler::Sampler(const SamplingSettings & settings, std::shared_ptr<const Model> model,
                 std::unique_ptr<GrammarState> grammar)
    : settings_(settings),
      model_(std::move(model)),
      grammar_(std::move(grammar)),
      n_vocab_(model_->n_vocab()),
      random_(settings.seed) {
    check_chain(settings_);
    check_repetition(settings_);
    check_bias(settings_, n_vocab_);
    if (penalizes(settings_)) {
        penalties_.emplace(PenaltySettings{settings_.repeat_penalty, settings_.frequency_penalty,
                                           settings_.presence_penalty, settings_.penalty_last_n},
                           n_vocab_);
    }
    if (settings_.dry_multiplier > 0 && settings_.dry_penalty_last_n > 0) {
        dry_.emplace(DrySettings{settings_.dry_multiplier, settings_.dry_base, settings_.dry_allowed_length,
                                 settings_.dry_penalty_last_n, settings_.dry_sequence_breakers},
                     model_);
    }
    if (settings_.mirostat != 0) {
        mirostat_.emplace(settings_.mirostat, settings_.mirostat_tau, settings_.mirostat_eta);
    }
}

Sampler::~Sampler() = default;

void Sampler::remember(std::int32_t token) {
    if (penalties_) {
        penalties_->accept(token);
    }
    if (dry_) {
        dry_->accept(token);
    }
}

void Sampler::accept(const std::vector<std::int32_t> & tokens) {
    const Alone alone(in_use_);
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= n_vocab_) {
            throw Error(ErrorKind::input, "sampling: token " + std::to_string(token) + " is not in the vocabulary of " +
                                              std::to_string(n_vocab_) + ".");
        }
    }
    for (const std::int32_t token : tokens) {
        remember(token);
    }
}

std::int32_t Sampler::sample(const float * logits) {
    const Alone alone(in_use_);
    if (logits == nullptr) {
        throw Error(ErrorKind::session, "sample: there are no logits. Evaluate a token first.");
    }
    if (has_xtc(settings_)) {
        drops_top_choices_ = random_.next() < static_cast<double>(settings_.xtc_probability);
    }
    const float * const offered = edited(logits);
    std::int32_t token = choose(offered);
    if (grammar_ && !grammar_->allows(token)) {
        token = choose(allowed(offered));
    }
    if (grammar_) {
        grammar_->accept(token);
    }
    if (mirostat_ && !is_greedy(settings_)) {
        mirostat_->learn(surprise_);
    }
    remember(token);
    return token;
}

// The logits with what biases, penalties and DRY do to a few of them.
const float * Sampler::edited(const float * logits) {
    if (settings_.logit_bias.empty() && !penalties_ && !dry_) {
        return logits;
    }
    edited_.assign(logits, logits + n_vocab_);
    for (const auto & [token, bias] : settings_.logit_bias) {
        float & logit = edited_[static_cast<std::size_t>(token)];
        if (std::isfinite(logit)) {
            logit = bias == -INFINITY ? bias : std::clamp(logit + bias, -FLT_MAX, FLT_MAX);
        }
    }
    if (penalties_) {
        penalties_->apply(edited_.data());
    }
    if (dry_) {
        dry_->apply(edited_.data());
    }
    if (std::none_of(edited_.begin(), edited_.end(), [](float x) { return x > -INFINITY; }) &&
        std::any_of(logits, logits + n_vocab_, [](float x) { return x > -INFINITY; })) {
        throw Error(ErrorKind::session,
                    "sample: logit_bias bans each token that the model could choose. Ban fewer of them.");
    }
    return edited_.data();
}

std::int32_t Sampler::choose(const float * logits) {
    logits_.look(logits, n_vocab_);
    logits_.require_finite();
    if (is_greedy(settings_)) {
        return logits_.likeliest();
    }
    if (mirostat_) {
        mirostat_->narrow(logits_, settings_.temperature, n_vocab_, candidates_);
        candidates_.heat(settings_.temperature);
    } else {
        gather();
        narrow();
        heat();
    }
    const std::size_t chosen = candidates_.draw(random_.next());
    if (mirostat_) {
        surprise_ = candidates_.surprise(chosen);
    }
    return candidates_.token(chosen);
}

// top_n_sigma and top_k. What top_p or min_p will drop anyway is left out here where nothing comes before them.
void Sampler::gather() {
    const SamplingSettings & s = settings_;
    const float greatest = logits_.greatest();
    float least = -INFINITY;
    mass_of_all_ = 0;
    if (s.top_n_sigma > 0) {
        const double distance = static_cast<double>(s.top_n_sigma) * logits_.deviation();
        least = static_cast<float>(static_cast<double>(greatest) - distance);
    }
    if (s.top_k > 0) {
        logits_.best(std::min(s.top_k, n_vocab_), candidates_);
        candidates_.keep_at_least(least);
        return;
    }
    if (s.typical_p == 1 && s.top_p < 1 && s.top_n_sigma == 0) {
        // So little each that all of them together have less than what top_p drops.
        constexpr double rounding = 0.99;
        mass_of_all_ = logits_.mass(1);
        least = relative_bound(greatest, rounding * (1 - static_cast<double>(s.top_p)) * mass_of_all_ / n_vocab_);
    }
    if (s.typical_p == 1 && s.min_p > 0 && (s.top_p == 1 || mass_of_all_ > 0)) {
        least = std::max(least, relative_bound(greatest, s.min_p));
    }
    logits_.at_least(least, candidates_);
}

void Sampler::narrow() {
    if (settings_.typical_p < 1) {
        candidates_.keep_typical(settings_.typical_p);
    }
    if (settings_.top_p < 1) {
        const double all = mass_of_all_ > 0 ? mass_of_all_ : candidates_.mass();
        candidates_.keep_top(static_cast<double>(settings_.top_p) * all);
    }
    if (settings_.min_p > 0) {
        candidates_.keep_relative(settings_.min_p);
    }
    if (drops_top_choices_) {
        candidates_.drop_top_choices(settings_.xtc_threshold);
    }
}

void Sampler::heat() {
    double temperature = settings_.temperature;
    if (settings_.dynatemp_range > 0) {
        const double range = settings_.dynatemp_range, least = std::max(0.0, temperature - range);
        const double share = std::pow(candidates_.relative_entropy(), settings_.dynatemp_exponent);
        temperature = least + (temperature + range - least) * share;
    }
    candidates_.heat(static_cast<float>(temperature));
}

// Asks the grammar about the first n of masked_ and says how many it allows.
std::size_t Sampler::mask(std::size_t n) {
    llama_token_data_array array{masked_.data(), n, -1, false};
    grammar_->mask(&array);
    return static_cast<std::size_t>(std::count_if(array.data, array.data + array.size,
                                                  [](const llama_token_data & one) { return one.logit > -INFINITY; }));
}

// The logits that were looked at last, with -inf where the grammar refuses the token. It is asked about a few first:
// for the greatest k of those that it allows that is mostly enough.
const float * Sampler::allowed(const float * logits) {
    constexpr std::int32_t few = 512;
    const bool needs_few = is_greedy(settings_) || (settings_.top_k > 0 && settings_.top_n_sigma == 0 && !mirostat_);
    const auto needed = static_cast<std::size_t>(is_greedy(settings_) ? 1 : settings_.top_k);
    allowed_.assign(static_cast<std::size_t>(n_vocab_), -INFINITY);
    std::size_t n_offered = 0;
    if (needs_few && needed <= few) {
        logits_.best(few, candidates_);
        n_offered = candidates_.size();
        masked_.resize(n_offered);
        for (std::size_t i = 0; i < n_offered; ++i) {
            masked_[i] = {candidates_.token(i), candidates_.logit(i), 0};
        }
    }
    if (n_offered == 0 || mask(n_offered) < needed) {
        n_offered = static_cast<std::size_t>(n_vocab_);
        masked_.resize(n_offered);
        for (std::size_t i = 0; i < n_offered; ++i) {
            masked_[i] = {static_cast<std::int32_t>(i), logits[i], 0};
        }
        if (mask(n_offered) == 0) {
            throw Error(ErrorKind::session,
                        "sample: the grammar allows no token of this model here: the answer cannot be completed. "
                        "Let the grammar allow more, or ban fewer tokens.");
        }
    }
    for (std::size_t i = 0; i < n_offered; ++i) {
        allowed_[static_cast<std::size_t>(masked_[i].id)] = masked_[i].logit;
    }
    return allowed_.data();
}

}  // namespace phiggml
