#include "batch.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "error.h"
#include "llama.h"
#include "progress.h"
#include "runtime.h"

namespace phiggml {

namespace {

class Batch {
public:
    explicit Batch(std::size_t capacity) : batch_(llama_batch_init(static_cast<std::int32_t>(capacity), 0, 1)) {}
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch &) = delete;
    Batch & operator=(const Batch &) = delete;

    void clear() { batch_.n_tokens = 0; }

    void add(std::int32_t token, std::int32_t position, std::int32_t sequence, bool logits) {
        const std::int32_t i = batch_.n_tokens++;
        batch_.token[i] = token;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = sequence;
        batch_.logits[i] = logits ? 1 : 0;
    }

    const llama_batch & get() const { return batch_; }

private:
    llama_batch batch_;
};

void check(std::int32_t status, const LogMark & mark) {
    switch (status) {
        case 0: return;
        case 1:
            throw Error(ErrorKind::session,
                        "eval: the context has no room for these tokens. Reset the session, or make "
                        "one of a larger n_ctx.");
        case 2: throw Cancelled();
        default:
            mark.check_device_memory("eval", "Make a session of a smaller n_ctx or n_batch, or with offload_kv=False");
            throw Error(ErrorKind::session,
                        "eval: decoding failed: " + mark.first_error() + " See the \"phiggml\" log at level DEBUG.");
    }
}

}  // namespace

void forget_from(llama_context * context, std::int32_t sequence, std::int32_t position) {
    const llama_memory_t memory = llama_get_memory(context);
    if (!llama_memory_seq_rm(memory, sequence, position, -1)) {
        llama_memory_seq_rm(memory, sequence, -1, -1);
    }
}

namespace {

struct Place {
    std::size_t part;
    std::size_t token;
};

class Decoder {
public:
    Decoder(llama_context * context, const std::vector<BatchPart> & parts, const WantsLogits & wants,
            const TakeLogits & take, const std::function<bool()> & stopped)
        : context_(context), parts_(parts), wants_(wants), take_(take), stopped_(stopped), batch_(capacity()) {}

    void run() {
        for (std::size_t part = 0; part < parts_.size(); ++part) {
            for (std::size_t token = 0; token < parts_[part].n_tokens; ++token) {
                add(part, token);
            }
        }
        if (batch_.get().n_tokens > 0) {
            decode();
        }
    }

private:
    // Upstream cuts larger ones up itself, and asserts that it need not where attention looks ahead.
    std::size_t capacity() const {
        std::size_t n = 0;
        for (const BatchPart & part : parts_) {
            n += part.n_tokens;
        }
        return std::max<std::size_t>(std::min<std::size_t>(llama_n_ubatch(context_), n), 1);
    }

    void add(std::size_t part, std::size_t token) {
        const BatchPart & p = parts_[part];
        const bool wanted = wants_(part, token);
        if (wanted) {
            rows_.push_back({batch_.get().n_tokens, {part, token}});
        }
        batch_.add(p.tokens[token], p.first_position + static_cast<std::int32_t>(token), p.sequence, wanted);
        if (static_cast<std::size_t>(batch_.get().n_tokens) == capacity_) {
            decode();
        }
    }

    void decode() {
        if (stopped_()) {
            throw Cancelled();
        }
        const LogMark mark(nullptr, stopped_);
        check(decode_once(), mark);
        for (const auto & [index, place] : rows_) {
            const float * logits = llama_get_logits_ith(context_, index);
            if (logits == nullptr) {
                throw Error(ErrorKind::unsupported, "eval: this model gives no logits.");
            }
            take_(place.part, place.token, logits);
        }
        rows_.clear();
        batch_.clear();
    }

    // Upstream may plan its graph anew here, and throws where that finds no memory.
    std::int32_t decode_once() {
        try {
            return llama_decode(context_, batch_.get());
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception & failure) {
            throw Error(ErrorKind::session, std::string("eval: decoding failed: ") + failure.what() + ".");
        }
    }

    llama_context * context_;
    const std::vector<BatchPart> & parts_;
    const WantsLogits & wants_;
    const TakeLogits & take_;
    const std::function<bool()> & stopped_;
    std::size_t capacity_ = capacity();
    Batch batch_;
    std::vector<std::pair<std::int32_t, Place>> rows_;  // of the batch
};

}  // namespace

void decode_in_batches(llama_context * context, const std::vector<BatchPart> & parts, arch::RopeSide rope_side,
                       const WantsLogits & wants, const TakeLogits & take, const std::function<bool()> & stopped) {
    const arch::RopeSideScope side(rope_side);
    try {
        Decoder(context, parts, wants, take, stopped).run();
    } catch (...) {
        for (const BatchPart & part : parts) {
            forget_from(context, part.sequence, part.first_position);
        }
        throw;
    }
}

}  // namespace phiggml
