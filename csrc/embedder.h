// Texts in, vectors out: a context of its own over a model, beside the session's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "adapter.h"
#include "model.h"
#include "progress.h"

struct ggml_threadpool;
struct llama_context;

namespace phiggml {

// What becomes of the vectors of a text's tokens: all of them, their mean, the first or the last.
enum class Pooling { none, mean, first, last };

struct EmbedRequest {
    std::vector<std::vector<std::int32_t>> texts;
    Pooling pooling = Pooling::mean;
    bool normalize = false;  // to length 1
};

struct EmbedderSettings {
    std::int64_t n_ctx = 0;  // tokens that a text may have
    int type_k = 1;          // ggml types of the KV cache
    int type_v = 1;
    std::optional<bool> flash_attn;  // none: as upstream decides
    int threads = 1;
};

// The tokens of the longest text. Throws Error::input when a text is empty or has more than `most`.
std::int64_t longest_text(const EmbedRequest & request, std::int64_t most);

class Embedder {
public:
    // Whether there is one for the model. Those that read one text to write another have none.
    static bool takes(const Model & model);

    // The threadpool, if there is one, and the adapters outlive it.
    Embedder(std::shared_ptr<const Model> model, const EmbedderSettings & settings, ggml_threadpool * threadpool,
             const std::vector<ScaledLora> & loras, const ControlVector & control_vector);
    Embedder(const Embedder &) = delete;
    Embedder & operator=(const Embedder &) = delete;

    // Tokens that a text may have: at least as many as were asked for.
    std::int64_t n_ctx() const { return n_ctx_; }

    // float32[n, n_embd], one row for each text or, without pooling, for each token of all texts.
    std::vector<float> embed(const EmbedRequest & request, Progress & progress);

private:
    struct Run;
    class Rows;

    void make_context(const EmbedderSettings & settings);
    void check(const EmbedRequest & request) const;
    std::vector<Run> runs(const EmbedRequest & request) const;
    void decode(const EmbedRequest & request, const Run & run, Progress & progress, Rows & rows);

    struct FreeContext {
        void operator()(llama_context * context) const;
    };

    std::shared_ptr<const Model> model_;
    std::int64_t n_ctx_;
    std::size_t n_packed_;  // tokens of several texts that are decoded together
    bool whole_;            // a text is decoded as a whole, else in batches
    bool plans_anew_ = true;
    std::unique_ptr<llama_context, FreeContext> context_;
    std::atomic<Progress *> progress_{nullptr};  // of the call under way; the abort callback reads it
};

}  // namespace phiggml
