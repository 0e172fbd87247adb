#include "embedder.h"

#include <algorithm>
#include <cmath>
#include <shared_mutex>
#include <string>
#include <utility>

#include "arch/long_rope.h"
#include "error.h"
#include "llama.h"
#include "runtime.h"
#include "upstream/llama_model.h"

namespace phiggml {

namespace {

// Texts that are decoded together at most: a recurrent model keeps a state for each.
constexpr std::int64_t most_together = 16;

// Upstream computes logits for each token as well, and holds those of a batch: so many floats at most.
constexpr std::int64_t most_logits = 1 << 25;

// A context has room for so many tokens at least; another one, larger, is made for a longer text.
constexpr std::int64_t least_ctx = 512;

std::int64_t room_for(std::int64_t n_tokens) {
    std::int64_t room = least_ctx;
    while (room < n_tokens) {
        room *= 2;
    }
    return room;
}

// The arrays of a llama_batch, each token with a vector of its own.
struct Batch {
    void add(std::int32_t token, std::int32_t position, std::int32_t sequence) {
        tokens.push_back(token);
        positions.push_back(position);
        counts.push_back(1);
        sequences.push_back(sequence);
        outputs.push_back(1);
    }

    llama_batch get() {
        sequence_pointers.clear();
        for (llama_seq_id & sequence : sequences) {
            sequence_pointers.push_back(&sequence);
        }
        return {static_cast<std::int32_t>(tokens.size()),
                tokens.data(),
                nullptr,
                positions.data(),
                counts.data(),
                sequence_pointers.data(),
                outputs.data()};
    }

    std::vector<llama_token> tokens;
    std::vector<llama_pos> positions;
    std::vector<std::int32_t> counts;
    std::vector<llama_seq_id> sequences;
    std::vector<llama_seq_id *> sequence_pointers;
    std::vector<std::int8_t> outputs;
};

std::int32_t compute(llama_context * context, const Model & model, Batch & batch) {
    return llama_model_has_encoder(model.handle()) ? llama_encode(context, batch.get())
                                                   : llama_decode(context, batch.get());
}

extern "C" bool embedding_is_cancelled(void * user_data) {
    const Progress * progress = static_cast<std::atomic<Progress *> *>(user_data)->load();
    return progress != nullptr && progress->stopped();
}

}  // namespace

std::int64_t longest_text(const EmbedRequest & request, std::int64_t most) {
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < request.texts.size(); ++i) {
        const auto n = static_cast<std::int64_t>(request.texts[i].size());
        if (n == 0) {
            throw Error(ErrorKind::input, "embed: text " + std::to_string(i) + " has no tokens. Leave it out.");
        }
        if (n > most) {
            throw Error(ErrorKind::input, "embed: text " + std::to_string(i) + " has " + std::to_string(n) +
                                              " tokens; this session takes " + std::to_string(most) +
                                              " (n_ctx). Split the text, or make a session with a larger n_ctx.");
        }
        longest = std::max(longest, n);
    }
    return longest;
}

bool Embedder::takes(const Model & model) {
    return !(llama_model_has_encoder(model.handle()) && llama_model_has_decoder(model.handle()));
}

void Embedder::FreeContext::operator()(llama_context * context) const {
    llama_free(context);
}

// Texts that are decoded together, or one that takes several batches.
struct Embedder::Run {
    std::vector<std::size_t> texts;
    arch::RopeSide rope_side;
};

// What is made of the tokens' vectors, in double.
class Embedder::Rows {
public:
    Rows(const EmbedRequest & request, std::size_t n_embd) : request_(request), n_embd_(n_embd) {
        starts_.push_back(0);
        for (const auto & text : request.texts) {
            starts_.push_back(starts_.back() + (request.pooling == Pooling::none ? text.size() : 1));
        }
        values_.resize(starts_.back() * n_embd);
    }

    void take(std::size_t text, std::size_t position, const float * row) {
        const std::size_t n_tokens = request_.texts[text].size();
        switch (request_.pooling) {
            case Pooling::none: add(starts_[text] + position, row, 1); return;
            case Pooling::mean: add(starts_[text], row, n_tokens); return;
            case Pooling::first: add(starts_[text], row, position == 0 ? 1 : 0); return;
            case Pooling::last: add(starts_[text], row, position + 1 == n_tokens ? 1 : 0); return;
        }
    }

    std::vector<float> finish() const {
        if (!std::all_of(values_.begin(), values_.end(), [](double x) { return std::isfinite(x); })) {
            throw Error(ErrorKind::session,
                        "embed: the model's vectors are not finite: its weights or an adapter's are damaged. Convert "
                        "them anew.");
        }
        std::vector<float> rows(values_.size());
        for (std::size_t begin = 0; begin < rows.size(); begin += n_embd_) {
            double length = 0;
            for (std::size_t i = begin; i < begin + n_embd_; ++i) {
                length += values_[i] * values_[i];
            }
            const double divisor = request_.normalize && length > 0 ? std::sqrt(length) : 1;
            for (std::size_t i = begin; i < begin + n_embd_; ++i) {
                rows[i] = static_cast<float>(values_[i] / divisor);
            }
        }
        return rows;
    }

private:
    // Adds a share of 1/n; none where n is 0.
    void add(std::size_t index, const float * row, std::size_t n) {
        double * sum = values_.data() + index * n_embd_;
        for (std::size_t i = 0; n > 0 && i < n_embd_; ++i) {
            sum[i] += static_cast<double>(row[i]) / static_cast<double>(n);
        }
    }

    const EmbedRequest & request_;
    std::size_t n_embd_;
    std::vector<std::size_t> starts_;  // the first row of each text
    std::vector<double> values_;
};

Embedder::Embedder(std::shared_ptr<const Model> model, const EmbedderSettings & settings, ggml_threadpool * threadpool,
                   const std::vector<ScaledLora> & loras, const ControlVector & control_vector)
    : model_(std::move(model)), n_ctx_(room_for(settings.n_ctx)) {
    const std::int64_t n_logits_each = std::max(model_->n_vocab(), 1);
    n_packed_ = static_cast<std::size_t>(std::clamp(most_logits / n_logits_each, 2 * most_together, least_ctx));
    whole_ = !upstream::is_causal(*model_->handle()) || llama_model_has_encoder(model_->handle());
    make_context(settings);
    if (!whole_ && llama_get_memory(context_.get()) == nullptr) {  // whatever the file says of attention
        whole_ = true;
        make_context(settings);
    }
    if (threadpool != nullptr) {
        llama_attach_threadpool(context_.get(), threadpool, threadpool);
    }
    apply_loras(context_.get(), *model_, loras);
    if (!control_vector.rows.empty()) {
        apply_control_vector(context_.get(), *model_, control_vector);
    }
}

void Embedder::make_context(const EmbedderSettings & settings) {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>(n_ctx_);
    // Upstream asserts that what looks ahead comes in one micro-batch.
    parameters.n_batch = whole_ ? parameters.n_ctx : static_cast<std::uint32_t>(n_packed_);
    parameters.n_ubatch = parameters.n_batch;
    parameters.n_seq_max = static_cast<std::uint32_t>(most_together);
    parameters.kv_unified = true;  // one text may take all of it
    parameters.swa_full = false;
    parameters.n_threads = settings.threads;
    parameters.n_threads_batch = settings.threads;
    parameters.type_k = static_cast<ggml_type>(settings.type_k);
    parameters.type_v = static_cast<ggml_type>(settings.type_v);
    parameters.flash_attn_type = !settings.flash_attn          ? LLAMA_FLASH_ATTN_TYPE_AUTO
                                 : settings.flash_attn.value() ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                                               : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    parameters.embeddings = true;
    if (upstream::has_pooling_type(*model_->handle())) {  // else it is none, and upstream would warn of saying so
        parameters.pooling_type = LLAMA_POOLING_TYPE_NONE;
    }
    parameters.abort_callback = embedding_is_cancelled;
    parameters.abort_callback_data = &progress_;
    parameters.no_perf = true;
    const LogMark mark;
    const std::shared_lock<std::shared_mutex> still(model_->adapters_mutex());
    context_.reset(llama_init_from_model(model_->handle(), parameters));
    if (!context_) {
        mark.check_device_memory("embed", "Split the texts, or hold fewer layers there (n_gpu_layers)");
        throw Error(ErrorKind::session, "embed: llama.cpp could not make a context of " + std::to_string(n_ctx_) +
                                            " tokens: " + mark.first_error() + " Split the texts.");
    }
}

void Embedder::check(const EmbedRequest & request) const {
    const int n_vocab = model_->n_vocab();
    for (const auto & text : request.texts) {
        for (const std::int32_t token : text) {
            if (token < 0 || token >= n_vocab) {
                throw Error(ErrorKind::input, "embed: token " + std::to_string(token) +
                                                  " is not in the vocabulary of " + std::to_string(n_vocab) + ".");
            }
        }
    }
}

std::vector<Embedder::Run> Embedder::runs(const EmbedRequest & request) const {
    const std::size_t line = arch::long_rope_line(*model_->handle());
    std::vector<Run> runs;
    std::size_t n_tokens = 0;
    for (std::size_t i = 0; i < request.texts.size(); ++i) {
        const std::size_t n = request.texts[i].size();
        const arch::RopeSide side = line > 0 && n > line ? arch::RopeSide::beyond : arch::RopeSide::within;
        const bool fits = !runs.empty() && runs.back().rope_side == side && n_tokens + n <= n_packed_ &&
                          runs.back().texts.size() < static_cast<std::size_t>(most_together);
        if (!fits) {
            runs.push_back({{}, side});
            n_tokens = 0;
        }
        runs.back().texts.push_back(i);
        n_tokens += n;
    }
    return runs;
}

void Embedder::decode(const EmbedRequest & request, const Run & run, Progress & progress, Rows & rows) {
    const auto width = static_cast<std::size_t>(llama_model_n_embd_out(model_->handle()));
    const arch::RopeSideScope side(run.rope_side);
    std::vector<std::pair<std::size_t, std::size_t>> places;  // text and position of each token
    for (const std::size_t text : run.texts) {
        for (std::size_t position = 0; position < request.texts[text].size(); ++position) {
            places.emplace_back(text, position);
        }
    }
    llama_memory_clear(llama_get_memory(context_.get()), false);
    const std::size_t n_batch = whole_ ? places.size() : n_packed_;
    for (std::size_t begin = 0; begin < places.size(); begin += n_batch) {
        const std::size_t end = std::min(begin + n_batch, places.size());
        Batch batch;
        for (std::size_t i = begin; i < end; ++i) {
            const auto [text, position] = places[i];
            batch.add(request.texts[text][position], static_cast<std::int32_t>(position),
                      static_cast<std::int32_t>(text - run.texts.front()));
        }
        const LogMark mark(nullptr, [&] { return progress.stopped(); });
        const std::int32_t status = compute(context_.get(), *model_, batch);
        if (status == 2) {
            throw Cancelled();
        }
        const float * values = status == 0 ? llama_get_embeddings(context_.get()) : nullptr;
        if (values == nullptr) {
            mark.check_device_memory("embed", "Split the texts, or hold fewer layers there (n_gpu_layers)");
            throw Error(ErrorKind::session,
                        "embed: decoding failed: " + mark.first_error() + " See the \"phiggml\" log at level DEBUG.");
        }
        for (std::size_t i = begin; i < end; ++i) {
            rows.take(places[i].first, places[i].second, values + (i - begin) * width);
        }
        progress.done += end - begin;
    }
}

std::vector<float> Embedder::embed(const EmbedRequest & request, Progress & progress) {
    check(request);
    longest_text(request, n_ctx_);
    Rows rows(request, static_cast<std::size_t>(llama_model_n_embd_out(model_->handle())));
    std::shared_lock<std::shared_mutex> still(model_->adapters_mutex(), std::defer_lock);
    if (plans_anew_) {
        still.lock();
    }
    progress_ = &progress;
    try {
        for (const Run & run : runs(request)) {
            decode(request, run, progress, rows);
            plans_anew_ = false;
        }
    } catch (...) {
        progress_ = nullptr;
        throw;
    }
    progress_ = nullptr;
    return rows.finish();
}

}  // namespace phiggml
