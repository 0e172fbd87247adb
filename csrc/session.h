// One context over a model: tokens in, logits or sampled tokens out.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapter.h"
#include "arch/long_rope.h"
#include "embedder.h"
#include "logprobs.h"
#include "model.h"
#include "progress.h"
#include "sampling.h"
#include "session_settings.h"

struct ggml_threadpool;
struct llama_context;

namespace phiggml {

// Tokens for a sequence, and how many of the last of them are to give logits.
struct Addition {
    std::int64_t sequence = 0;
    std::vector<std::int32_t> tokens;
    std::size_t n_rows = 1;
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

    // Appends tokens to a sequence and returns the logits after those at `wanted`, which ascend: float32[n, n_vocab].
    // Where that takes the sequence across the line of long rope, what it held before is evaluated once more.
    std::vector<float> eval(const std::vector<std::int32_t> & tokens, const std::vector<std::size_t> & wanted,
                            std::int64_t sequence, Progress & progress);

    // Appends tokens to several sequences, decoded together, and keeps their rows of logits, in this order, for the
    // calls below.
    void advance(const std::vector<Addition> & additions, Progress & progress);

    // Chooses a token from a row of logits; does not append it.
    std::int32_t sample(Sampler & sampler, std::size_t row);
    Logprobs logprobs(std::size_t row, std::int32_t token, std::int32_t k) const;
    std::vector<float> logits(std::size_t row) const;

    // Appends tokens to a sequence and returns the logarithm of the probability of each but the first of them.
    std::vector<float> score(const std::vector<std::int32_t> & tokens, std::int64_t sequence, Progress & progress);

    // What a call that appends tokens has done is taken back by undo(), until the next one, or settle().
    void undo();
    void settle() { undo_.clear(); }

    // Forgets a sequence's tokens after the first n_tokens.
    void truncate(std::size_t n_tokens, std::int64_t sequence);

    // Forgets what a sequence does not have in common with these tokens, and the last of them at least. Returns how
    // many are left.
    std::size_t reuse(const std::vector<std::int32_t> & tokens, std::int64_t sequence);

    // Makes a sequence the same as another.
    void fork(std::int64_t source, std::int64_t target);

    // From any thread: the call under way ends, and those after it, until allow(), which is a call like any other.
    void cancel() { cancelled_ = true; }
    void allow();
    bool cancelled() const { return cancelled_; }
    bool stopped() const;  // asked for by the abort callback

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
    std::int32_t n_vocab() const { return model_->n_vocab(); }
    std::size_t rope_line() const { return rope_line_; }  // 0: none
    std::vector<std::int32_t> tokens(std::int64_t sequence) const;
    const llama_context & context() const { return *context_; }  // of a model that may generate

    // What it costs to append so many tokens, in bytes of weights to be read; tokens that are evaluated once more with
    // them count.
    std::uint64_t cost(std::size_t n_tokens, std::int64_t sequence) const;

private:
    friend class SessionState;

    struct Sequence {
        std::vector<std::int32_t> tokens;
        std::size_t n_evaluated = 0;  // so many of them are in the cache
        arch::RopeSide rope_side = arch::RopeSide::within;
    };

    struct Undo {
        std::int64_t sequence;
        std::size_t n_tokens;
        std::vector<std::int32_t> shifted;  // all of them, where some have left since
    };

    using Wants = std::function<bool(std::size_t addition, std::size_t token)>;
    using TakeRow = std::function<void(std::size_t addition, std::size_t token, const float * logits)>;

    void evaluate(const std::vector<Addition> & additions, const Wants & wants, const TakeRow & take,
                  Progress & progress);
    void evaluate_side(const std::vector<Addition> & additions, const std::vector<std::size_t> & n_before,
                       arch::RopeSide side, const Wants & wants, const TakeRow & take);
    void check_additions(const std::vector<Addition> & additions) const;
    void check_tokens(const std::vector<std::int32_t> & tokens) const;
    void check_room(const Addition & addition) const;
    void make_room(const Addition & addition);
    void shift(std::int64_t sequence);
    bool turns_in_place() const;
    void keep(std::int64_t sequence, std::size_t n_tokens);
    arch::RopeSide rope_side(std::size_t n_total) const;
    void choose_rope_side(std::int64_t sequence, std::size_t n_total);
    const float * row(std::size_t row) const;
    Sequence & sequence_at(std::int64_t sequence) { return sequences_[static_cast<std::size_t>(sequence)]; }
    void make_context();
    void forget(bool with_numbers);
    void evaluate_anew();
    const Sequence & at(std::int64_t sequence) const;
    void attach_threadpool();
    void free();
    void abandon_all();
    bool lost_threads() const;  // by a fork
    bool lost_user() const;     // the thread that was inside

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
    std::unique_ptr<llama_context, FreeContext> context_;  // none where the model only embeds
    std::unique_ptr<Embedder> embedder_;                   // made when it is first asked for
    bool generates_ = false;                               // else it embeds texts only
    bool plans_anew_ = false;                              // upstream will, at the next decode
    std::vector<Sequence> sequences_;
    std::size_t rope_line_;
    std::vector<float> rows_;                    // float32[n, n_vocab], of the last advance()
    std::vector<Undo> undo_;                     // of the last call that appended tokens
    std::atomic<Progress *> progress_{nullptr};  // of the call under way; the abort callback reads it
    std::atomic<bool> cancelled_{false};
    std::atomic<bool> closed_{false};
    mutable std::atomic<std::uint64_t> user_{0};  // the process' generation where a thread is inside, and one; else 0
};

}  // namespace phiggml
