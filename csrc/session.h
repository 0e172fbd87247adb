// One context over a model: tokens in, logits or sampled tokens out.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapter.h"
#include "arch/long_rope.h"
#include "embedder.h"
#include "model.h"
#include "progress.h"
#include "sampling.h"

struct ggml_threadpool;
struct llama_context;

namespace phiggml {

struct SessionSettings {
    std::int64_t n_ctx = 0;    // tokens per sequence
    std::int64_t n_batch = 0;  // tokens that one decode call takes
    std::int64_t n_seq_max = 1;
    int type_k = 1;  // ggml types of the KV cache
    int type_v = 1;
    std::optional<bool> flash_attn;  // none: as upstream decides
    bool offload_kv = true;          // the cache of a layer lies where the layer does; else on the CPU
    int threads = 1;
};

class Session {
public:
    Session(std::shared_ptr<const Model> model, const SessionSettings & settings);
    ~Session();
    Session(const Session &) = delete;
    Session & operator=(const Session &) = delete;

    // That one thread is inside. Whoever calls eval, prefill or truncate holds one; the others make their own.
    class Use {
    public:
        explicit Use(const Session & session, bool may_be_closed = false);
        ~Use();
        Use(const Use &) = delete;
        Use & operator=(const Use &) = delete;

    private:
        const Session & session_;
    };

    // Appends tokens to a sequence and returns float32[n, n_vocab] (all) or float32[1, n_vocab]. Where that takes the
    // sequence across the line of long rope, what it held before is evaluated once more.
    std::vector<float> eval(const std::vector<std::int32_t> & tokens, bool all_logits, std::int64_t sequence,
                            Progress & progress);

    // Appends tokens to sequence 0 and keeps the last one's logits for sample().
    void prefill(const std::vector<std::int32_t> & tokens, Progress & progress);

    // Forgets a sequence's tokens after the first n_tokens.
    void truncate(std::size_t n_tokens, std::int64_t sequence);

    // Chooses a token from the last logits; does not append it.
    std::int32_t sample(Sampler & sampler);

    // What is in the context was computed otherwise: the next call evaluates it again.
    void set_lora(std::vector<ScaledLora> loras);
    void set_control_vector(ControlVector vector);

    // The vectors of texts, which have nothing to do with what is in the context. Whoever calls it holds a Use.
    std::vector<float> embed(const EmbedRequest & request, Progress & progress);

    void reset();
    void reset(std::int64_t sequence);
    void close();

    bool closed() const { return closed_; }
    std::int64_t n_ctx() const { return settings_.n_ctx; }
    std::vector<std::int32_t> tokens(std::int64_t sequence) const;
    std::size_t n_tokens(std::int64_t sequence) const { return at(sequence).tokens.size(); }
    const llama_context & context() const { return *context_; }

    // What it costs to append so many tokens, in bytes of weights to be read; tokens that are evaluated once more with
    // them count.
    std::uint64_t cost(std::size_t n_tokens, std::int64_t sequence) const;

private:
    struct Sequence {
        std::vector<std::int32_t> tokens;
        std::size_t n_evaluated = 0;  // so many of them are in the cache
        arch::RopeSide rope_side = arch::RopeSide::within;
    };

    void decode(const std::vector<std::int32_t> & tokens, bool all_logits, std::int64_t sequence, Progress & progress,
                std::vector<float> * out);
    void check_tokens(const std::vector<std::int32_t> & tokens, const Sequence & sequence) const;
    void keep(std::int64_t sequence, std::size_t n_tokens);
    arch::RopeSide rope_side(std::size_t n_total) const;
    void choose_rope_side(std::int64_t sequence, std::size_t n_total);
    void make_context();
    void evaluate_anew();
    const Sequence & at(std::int64_t sequence) const;
    void attach_threadpool();
    void free();
    bool lost_threads() const;  // by a fork

    struct FreeContext {
        void operator()(llama_context * context) const;
    };
    struct FreeThreadpool {
        void operator()(ggml_threadpool * pool) const;
    };

    std::shared_ptr<const Model> model_;
    SessionSettings settings_;
    std::uint64_t n_bytes_;
    std::uint64_t generation_;                                     // of the process
    std::unique_ptr<ggml_threadpool, FreeThreadpool> threadpool_;  // outlives the context that it is attached to
    std::vector<ScaledLora> loras_;                                // as long as the context that they are applied to
    ControlVector control_vector_;
    bool control_vector_failed_ = false;
    std::unique_ptr<llama_context, FreeContext> context_;
    std::unique_ptr<Embedder> embedder_;  // made when it is first asked for
    bool generates_ = false;              // else it embeds texts only
    bool plans_anew_ = false;             // upstream will, at the next decode
    std::vector<Sequence> sequences_;
    std::size_t rope_line_;
    bool has_logits_ = false;
    std::atomic<Progress *> progress_{nullptr};  // of the call under way; the abort callback reads it
    std::atomic<bool> closed_{false};
    mutable std::atomic<bool> in_use_{false};
};

}  // namespace phiggml
