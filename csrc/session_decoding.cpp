// What a Session does with tokens and logits.
#include <algorithm>
#include <array>
#include <numeric>
#include <shared_mutex>

#include "batch.h"
#include "error.h"
#include "llama.h"
#include "runtime.h"
#include "session.h"

namespace phiggml {

namespace {

// Those at the front stay when a context is shifted: attention leans on them, whatever they are (StreamingLLM,
// arXiv:2309.17453).
constexpr std::size_t n_sinks = 4;

}  // namespace

void Session::check_tokens(const std::vector<std::int32_t> & tokens) const {
    if (!generates_) {
        throw Error(ErrorKind::unsupported, "session: this model generates no text. Embed texts with it.");
    }
    if (tokens.empty()) {
        throw Error(ErrorKind::input, "eval: there are no tokens. Pass at least one.");
    }
    const int n_vocab = model_->n_vocab();
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "eval: token " + std::to_string(token) + " is not in the vocabulary of " +
                                              std::to_string(n_vocab) + ".");
        }
    }
}

void Session::check_additions(const std::vector<Addition> & additions) const {
    std::vector<char> seen(sequences_.size(), 0);
    for (const Addition & addition : additions) {
        static_cast<void>(at(addition.sequence));
        check_tokens(addition.tokens);
        char & is_seen = seen[static_cast<std::size_t>(addition.sequence)];
        if (is_seen != 0) {
            throw Error(ErrorKind::input, "eval: sequence " + std::to_string(addition.sequence) + " is named twice.");
        }
        is_seen = 1;
    }
}

void Session::check_room(const Addition & addition) const {
    const auto most = static_cast<std::size_t>(settings_.n_ctx);
    const std::size_t n_tokens = addition.tokens.size();
    const Sequence & s = at(addition.sequence);
    if (s.tokens.size() + n_tokens <= most) {
        return;
    }
    const std::string offered = std::to_string(n_tokens), limit = std::to_string(most);
    if (n_tokens > most || s.tokens.empty()) {
        throw Error(ErrorKind::session, "eval: " + offered + " tokens do not fit into n_ctx = " + limit +
                                            ". Make a session with a larger n_ctx.");
    }
    if (settings_.overflow == Overflow::refuse) {
        throw Error(ErrorKind::session, "session: the context holds " + std::to_string(s.tokens.size()) +
                                            " of n_ctx = " + limit + " tokens: there is no room for " + offered +
                                            " more. Make a session with a larger n_ctx or with overflow=\"shift\", "
                                            "write fewer tokens (max_tokens), or reset it.");
    }
}

void Session::make_room(const Addition & addition) {
    const auto most = static_cast<std::size_t>(settings_.n_ctx);
    Sequence & s = sequence_at(addition.sequence);
    undo_.push_back({addition.sequence, s.tokens.size(), {}});
    while (s.tokens.size() + addition.tokens.size() > most) {
        if (undo_.back().shifted.empty()) {
            undo_.back().shifted = s.tokens;
        }
        shift(addition.sequence);
    }
}

namespace {

// Upstream turns keys once more as it turned them first, which is not the same where it scales them, too.
bool scales_rope(const llama_model * model) {
    std::array<char, 128> value;
    const auto find = [&](const std::string & key) {
        return llama_model_meta_val_str(model, key.c_str(), value.data(), value.size()) >= 0;
    };
    if (!find("general.architecture")) {
        return true;
    }
    const std::string prefix = std::string(value.data()) + ".rope.";
    return find(prefix + "scaling.attn_factor") || find(prefix + "scaling.factor") || find(prefix + "scale_linear") ||
           (find(prefix + "scaling.type") && std::string(value.data()) != "none");
}

}  // namespace

// Whether positions in the cache can be changed. Upstream says yes and ends the process where layers have a sliding
// window or keys are BF16, or quantized of some lengths of heads, and leaves learned positions as they were. A
// recurrent state may be shared with the sequence that it was forked from, which would move along.
bool Session::turns_in_place() const {
    const llama_model * model = model_->handle();
    const llama_rope_type type = llama_model_rope_type(model);
    return rope_line_ == 0 && llama_model_n_swa(model) == 0 && !llama_model_is_recurrent(model) &&
           !llama_model_is_hybrid(model) && (type == LLAMA_ROPE_TYPE_NORM || type == LLAMA_ROPE_TYPE_NEOX) &&
           (settings_.type_k == GGML_TYPE_F32 || settings_.type_k == GGML_TYPE_F16) && !scales_rope(model) &&
           llama_memory_can_shift(llama_get_memory(context_.get()));
}

// Drops the older half of the tokens behind the first ones.
void Session::shift(std::int64_t sequence) {
    Sequence & s = sequence_at(sequence);
    const std::size_t n_kept = s.tokens.size() > 2 * n_sinks ? n_sinks : 0;
    const std::size_t n_dropped = (s.tokens.size() - n_kept + 1) / 2;
    const auto from = static_cast<std::ptrdiff_t>(n_kept), until = static_cast<std::ptrdiff_t>(n_kept + n_dropped);
    s.tokens.erase(s.tokens.begin() + from, s.tokens.begin() + until);
    const llama_memory_t memory = llama_get_memory(context_.get());
    const auto id = static_cast<llama_seq_id>(sequence);
    const bool in_place = turns_in_place() && s.n_evaluated >= n_kept + n_dropped &&
                          llama_memory_seq_rm(memory, id, static_cast<llama_pos>(from), static_cast<llama_pos>(until));
    if (in_place) {
        llama_memory_seq_add(memory, id, static_cast<llama_pos>(until), -1, -static_cast<llama_pos>(n_dropped));
        s.n_evaluated -= n_dropped;
    } else {
        keep(sequence, std::min(n_kept, s.n_evaluated));
    }
    log_debug("session: sequence " + std::to_string(sequence) + " was full: " + std::to_string(n_dropped) +
              " tokens have left it" + (in_place ? ".\n" : ", and what is left is evaluated again.\n"));
}

// Keeps the first n_tokens of what is in the cache; nothing where the model's memory cannot go back to there.
void Session::keep(std::int64_t sequence, std::size_t n_tokens) {
    const llama_memory_t memory = llama_get_memory(context_.get());
    const auto id = static_cast<llama_seq_id>(sequence);
    forget_from(context_.get(), id, static_cast<llama_pos>(n_tokens));
    const llama_pos last = llama_memory_seq_pos_max(memory, id);
    const llama_pos window = llama_model_n_swa(model_->handle());
    // A short cache has let go of what the window of an earlier token still sees.
    if (!settings_.swa_full && window > 0 && last >= 0 &&
        llama_memory_seq_pos_min(memory, id) > std::max(0, last + 1 - window)) {
        llama_memory_seq_rm(memory, id, -1, -1);
        sequence_at(sequence).n_evaluated = 0;
        return;
    }
    sequence_at(sequence).n_evaluated = static_cast<std::size_t>(last + 1);
}

arch::RopeSide Session::rope_side(std::size_t n_total) const {
    return rope_line_ > 0 && n_total > rope_line_ ? arch::RopeSide::beyond : arch::RopeSide::within;
}

std::uint64_t Session::cost(std::size_t n_tokens, std::int64_t sequence) const {
    const Sequence & s = at(sequence);
    const std::size_t n_total = s.tokens.size() + n_tokens;
    return n_bytes_ * (n_total - (rope_side(n_total) == s.rope_side ? s.n_evaluated : 0));
}

void Session::choose_rope_side(std::int64_t sequence, std::size_t n_total) {
    Sequence & s = sequence_at(sequence);
    const arch::RopeSide side = rope_side(n_total);
    if (side == s.rope_side) {
        return;
    }
    if (s.n_evaluated > 0) {
        log_debug("session: with " + std::to_string(n_total) + " tokens the sequence crosses the line of long rope, " +
                  std::to_string(rope_line_) + "; its " + std::to_string(s.tokens.size()) +
                  " tokens are evaluated again.\n");
        keep(sequence, 0);
    }
    s.rope_side = side;
}

void Session::evaluate(const std::vector<Addition> & additions, const Wants & wants, const TakeRow & take,
                       Progress & progress) {
    settle();
    check_additions(additions);
    for (const Addition & addition : additions) {
        check_room(addition);
    }
    rows_.clear();
    for (const Addition & addition : additions) {
        make_room(addition);
    }
    std::vector<std::size_t> n_before;
    for (const Addition & addition : additions) {
        Sequence & s = sequence_at(addition.sequence);
        n_before.push_back(s.tokens.size());
        choose_rope_side(addition.sequence, s.tokens.size() + addition.tokens.size());
        s.tokens.insert(s.tokens.end(), addition.tokens.begin(), addition.tokens.end());
        progress.total += s.tokens.size() - s.n_evaluated;
    }
    progress_ = &progress;
    std::shared_lock<std::shared_mutex> still(model_->adapters_mutex(), std::defer_lock);
    if (plans_anew_) {
        still.lock();
    }
    try {
        evaluate_side(additions, n_before, arch::RopeSide::within, wants, take);
        evaluate_side(additions, n_before, arch::RopeSide::beyond, wants, take);
    } catch (...) {
        progress_ = nullptr;
        undo();
        throw;
    }
    progress_ = nullptr;
    plans_anew_ = false;
}

void Session::undo() {
    for (Undo & done : undo_) {
        Sequence & s = sequence_at(done.sequence);
        if (done.shifted.empty()) {
            s.tokens.resize(done.n_tokens);
            keep(done.sequence, std::min(s.n_evaluated, done.n_tokens));
        } else {
            s.tokens = std::move(done.shifted);
            keep(done.sequence, 0);  // keys may have been turned in part
        }
    }
    settle();
    rows_.clear();
}

// The tokens of one call of llama_decode are turned alike.
void Session::evaluate_side(const std::vector<Addition> & additions, const std::vector<std::size_t> & n_before,
                            arch::RopeSide side, const Wants & wants, const TakeRow & take) {
    struct Origin {
        std::size_t addition;
        std::size_t n_again;  // tokens before the new ones
    };
    std::vector<BatchPart> parts;
    std::vector<Origin> origins;
    for (std::size_t i = 0; i < additions.size(); ++i) {
        const Sequence & s = at(additions[i].sequence);
        if (s.rope_side == side) {
            parts.push_back({s.tokens.data() + s.n_evaluated, s.tokens.size() - s.n_evaluated,
                             static_cast<std::int32_t>(additions[i].sequence),
                             static_cast<std::int32_t>(s.n_evaluated)});
            origins.push_back({i, n_before[i] - s.n_evaluated});
        }
    }
    if (parts.empty()) {
        return;
    }
    decode_in_batches(
        context_.get(), parts, side,
        [&](std::size_t part, std::size_t token) {
            const Origin & origin = origins[part];
            return token >= origin.n_again && wants(origin.addition, token - origin.n_again);
        },
        [&](std::size_t part, std::size_t token, const float * logits) {
            take(origins[part].addition, token - origins[part].n_again, logits);
        },
        [this] { return stopped(); });
    for (const Origin & origin : origins) {
        Sequence & s = sequence_at(additions[origin.addition].sequence);
        s.n_evaluated = s.tokens.size();
    }
}

std::vector<float> Session::eval(const std::vector<std::int32_t> & tokens, const std::vector<std::size_t> & wanted,
                                 std::int64_t sequence, Progress & progress) {
    const auto n_vocab = static_cast<std::size_t>(model_->n_vocab());
    std::vector<float> logits;
    logits.reserve(wanted.size() * n_vocab);
    evaluate(
        {{sequence, tokens}},
        [&](std::size_t, std::size_t token) { return std::binary_search(wanted.begin(), wanted.end(), token); },
        [&](std::size_t, std::size_t, const float * row) { logits.insert(logits.end(), row, row + n_vocab); },
        progress);
    return logits;
}

void Session::advance(const std::vector<Addition> & additions, Progress & progress) {
    const auto n_vocab = static_cast<std::size_t>(model_->n_vocab());
    std::vector<std::size_t> first_row;
    std::size_t n_rows = 0;
    for (const Addition & addition : additions) {
        first_row.push_back(n_rows);
        n_rows += addition.n_rows;
    }
    std::vector<float> rows = std::move(rows_);
    rows.resize(n_rows * n_vocab);
    const auto n_silent = [&](std::size_t i) {
        return additions[i].tokens.size() - std::min(additions[i].n_rows, additions[i].tokens.size());
    };
    evaluate(
        additions, [&](std::size_t i, std::size_t token) { return token >= n_silent(i); },
        [&](std::size_t i, std::size_t token, const float * row) {
            const std::size_t at = first_row[i] + token - n_silent(i);
            std::copy_n(row, n_vocab, rows.begin() + static_cast<std::ptrdiff_t>(at * n_vocab));
        },
        progress);
    rows_ = std::move(rows);
}

std::vector<float> Session::score(const std::vector<std::int32_t> & tokens, std::int64_t sequence,
                                  Progress & progress) {
    std::vector<float> logprobs(tokens.empty() ? 0 : tokens.size() - 1);
    evaluate(
        {{sequence, tokens}}, [&](std::size_t, std::size_t token) { return token + 1 < tokens.size(); },
        [&](std::size_t, std::size_t token, const float * row) {
            logprobs[token] = log_probabilities(row, model_->n_vocab(), tokens[token + 1], 0).logprob;
        },
        progress);
    return logprobs;
}

void Session::truncate(std::size_t n_tokens, std::int64_t sequence) {
    if (n_tokens >= at(sequence).tokens.size()) {
        return;
    }
    Sequence & s = sequence_at(sequence);
    s.tokens.resize(n_tokens);
    rows_.clear();
    if (s.n_evaluated > n_tokens) {
        keep(sequence, n_tokens);
    }
}

std::size_t Session::reuse(const std::vector<std::int32_t> & tokens, std::int64_t sequence) {
    const std::vector<std::int32_t> & held = at(sequence).tokens;
    const std::size_t most = std::min(held.size(), tokens.empty() ? 0 : tokens.size() - 1);
    const auto differs = std::mismatch(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(most), tokens.begin());
    const auto n = static_cast<std::size_t>(differs.first - held.begin());
    truncate(n, sequence);
    return n;
}

const float * Session::row(std::size_t row) const {
    const auto n_vocab = static_cast<std::size_t>(model_->n_vocab());
    if ((row + 1) * n_vocab > rows_.size()) {
        throw Error(ErrorKind::session, "sample: there are no logits yet. Evaluate a token first.");
    }
    return rows_.data() + row * n_vocab;
}

std::int32_t Session::sample(Sampler & sampler, std::size_t row) {
    const Use use(*this);
    return sampler.sample(this->row(row));
}

Logprobs Session::logprobs(std::size_t row, std::int32_t token, std::int32_t k) const {
    const Use use(*this);
    return log_probabilities(this->row(row), model_->n_vocab(), token, k);
}

std::vector<float> Session::logits(std::size_t row) const {
    const Use use(*this);
    const float * begin = this->row(row);
    return {begin, begin + model_->n_vocab()};
}

}  // namespace phiggml
