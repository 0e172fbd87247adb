// Choosing the next token from logits.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "candidates.h"
#include "logits.h"
#include "mirostat.h"
#include "model.h"
#include "random_stream.h"
#include "repetition.h"

struct llama_token_data;

namespace phiggml {

class GrammarState;

// As given here, each is switched off; the defaults of users are Python's.
struct SamplingSettings {
    float temperature = 0;  // 0: the likeliest token, always
    float dynatemp_range = 0;
    float dynatemp_exponent = 1;
    std::int32_t top_k = 0;
    float top_p = 1;
    float min_p = 0;
    float typical_p = 1;
    float top_n_sigma = 0;
    float xtc_probability = 0;
    float xtc_threshold = 0;
    float dry_multiplier = 0;
    float dry_base = 1;
    std::int32_t dry_allowed_length = 1;
    std::int32_t dry_penalty_last_n = 0;
    std::vector<std::string> dry_sequence_breakers;
    std::int32_t mirostat = 0;
    float mirostat_tau = 1;
    float mirostat_eta = 0;
    float repeat_penalty = 1;
    float frequency_penalty = 0;
    float presence_penalty = 0;
    std::int32_t penalty_last_n = 0;
    std::vector<std::pair<std::int32_t, float>> logit_bias;  // added; -inf bans
    std::uint32_t seed = 0;
};

// The order is llama.cpp's: logit_bias, penalties, DRY, top_n_sigma, top_k, typical_p, top_p, min_p, XTC, temperature.
// Mirostat stands in the place of all between DRY and temperature. A token whose logit is -inf is no candidate.
//
// A token takes one random number, and before it one for XTC where that is on; a greedy one takes none. Where the
// grammar refuses it, one of those that it allows is chosen instead, which takes one more.
class Sampler {
public:
    // Throws Error::input naming the setting. The grammar may be null; it is this answer's own place in it.
    Sampler(const SamplingSettings & settings, std::shared_ptr<const Model> model,
            std::unique_ptr<GrammarState> grammar);
    ~Sampler();
    Sampler(const Sampler &) = delete;
    Sampler & operator=(const Sampler &) = delete;

    // Tells penalties and DRY of tokens that were not chosen here: the prompt's.
    void accept(const std::vector<std::int32_t> & tokens);

    // Chooses from float32[n_vocab], and takes note of it.
    std::int32_t sample(const float * logits);

    std::int32_t n_vocab() const { return n_vocab_; }

private:
    const float * edited(const float * logits);
    std::int32_t choose(const float * logits);
    void gather();
    void narrow();
    void heat();
    const float * allowed(const float * logits);
    std::size_t mask(std::size_t n);
    void remember(std::int32_t token);

    SamplingSettings settings_;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<GrammarState> grammar_;
    std::int32_t n_vocab_;
    std::optional<Penalties> penalties_;
    std::optional<Dry> dry_;
    std::optional<Mirostat> mirostat_;
    RandomStream random_;
    bool drops_top_choices_ = false;  // for this token
    double mass_of_all_ = 0;          // of this token's logits, where not all are gathered
    double surprise_ = 0;             // of the token that was chosen last
    Logits logits_;
    Candidates candidates_;
    std::vector<float> edited_;
    std::vector<float> allowed_;
    std::vector<llama_token_data> masked_;
    std::atomic<bool> in_use_{false};
};

}  // namespace phiggml
