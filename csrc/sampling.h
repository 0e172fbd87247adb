// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

struct llama_context;
struct llama_sampler;

namespace phiggml {

struct SamplingSettings {
    float temperature = 0;  // 0: the likeliest token, always
    std::int32_t top_k = 0;
    float top_p = 1;
    float min_p = 0;
    float typical_p = 1;
    float repeat_penalty = 1;
    float frequency_penalty = 0;
    float presence_penalty = 0;
    std::int32_t penalty_last_n = 0;
    std::uint32_t seed = 0;
};

class Sampler {
public:
    Sampler(const SamplingSettings & settings, std::int32_t n_vocab);

    // Tells the penalties of tokens that were not sampled here.
    void accept(const std::vector<std::int32_t> & tokens);

    // Chooses from the context's last logits.
    std::int32_t sample(llama_context * context);

private:
    struct Free {
        void operator()(llama_sampler * sampler) const;
    };
    std::unique_ptr<llama_sampler, Free> chain_;
};

}  // namespace phiggml
