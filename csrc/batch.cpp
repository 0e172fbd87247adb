#include "batch.h"

#include <algorithm>
#include <memory>

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

void decode_in_batches(llama_context * context, const BatchRequest & request, const TakeLogits & take) {
    const std::size_t n = request.n_tokens;
    const std::size_t first_logits = std::min(request.n_silent, n - 1);
    const arch::RopeSideScope side(request.rope_side);
    // Upstream cuts larger ones up itself, and asserts that it need not where attention looks ahead.
    const std::size_t n_batch = std::min<std::size_t>(llama_n_ubatch(context), n);
    Batch batch(std::max<std::size_t>(n_batch, 1));
    try {
        for (std::size_t begin = 0; begin < n; begin += n_batch) {
            const std::size_t end = std::min(begin + n_batch, n);
            batch.clear();
            for (std::size_t i = begin; i < end; ++i) {
                batch.add(request.tokens[i], request.first_position + static_cast<std::int32_t>(i), request.sequence,
                          i >= first_logits);
            }
            const LogMark mark;
            check(llama_decode(context, batch.get()), mark);
            const std::size_t n_rows = end - std::min(std::max(begin, first_logits), end);
            if (n_rows > 0) {
                const float * logits = llama_get_logits(context);
                if (logits == nullptr) {
                    throw Error(ErrorKind::unsupported, "eval: this model gives no logits.");
                }
                take(logits, n_rows);
            }
        }
    } catch (...) {
        forget_from(context, request.sequence, request.first_position);
        throw;
    }
}

}  // namespace phiggml
