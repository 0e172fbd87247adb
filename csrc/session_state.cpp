#include "session_state.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "batch.h"
#include "error.h"
#include "ggml.h"
#include "quant_type.h"

namespace phiggml {

namespace {

// The 16-bit halves at the front of each block that hold an exponent, all ones where the number is not finite.
struct Exponents {
    std::size_t stride;
    std::size_t first;  // byte of the block
    std::size_t count;
    std::uint16_t mask;
};

Exponents exponents_of(int type) {
    constexpr std::uint16_t half = 0x7c00, single = 0x7f80;
    switch (type) {
        case GGML_TYPE_F32: return {4, 2, 1, single};
        case GGML_TYPE_BF16: return {2, 0, 1, single};
        case GGML_TYPE_F16: return {2, 0, 1, half};
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1: return {block_bytes(type), 0, 2, half};  // scale and minimum
        default: return {block_bytes(type), 0, 1, half};
    }
}

}  // namespace

SessionState::SessionState(Session & session, std::int64_t sequence)
    : session_(&session), number_(sequence), use_(std::in_place, session) {
    const Session::Sequence & held = session.at(sequence);
    if (!session.generates_) {
        throw Error(ErrorKind::unsupported, "session: this model generates no text, and keeps nothing of it.");
    }
    adapters_still_ = std::shared_lock<std::shared_mutex>(session.model_->adapters_mutex());
    try {
        cached_ = upstream::cached_sequence(*session.context_, static_cast<std::int32_t>(sequence));
    } catch (const std::runtime_error & error) {
        throw Error(ErrorKind::session, std::string("session: llama.cpp cannot tell what is in its cache: ") +
                                            error.what() + ". Make a new Session.");
    }
    if (cached_ && takes_numbers(held.n_evaluated) && upstream::find_cells(*cached_, held.n_evaluated)) {
        n_evaluated_ = held.n_evaluated;
    }
    n_bytes_ = n_evaluated_ * token_bytes();
}

void SessionState::close() {
    if (begun_) {
        session_->keep(number_, 0);
        begun_.reset();
    }
    cached_.reset();
    if (adapters_still_.owns_lock()) {
        adapters_still_.unlock();
    }
    use_.reset();
    session_ = nullptr;
}

Session & SessionState::session() const {
    if (session_ == nullptr) {
        throw Error(ErrorKind::session, "session: what was to be saved or loaded has been closed.");
    }
    return *session_;
}

Session::Sequence & SessionState::sequence() const {
    return session().sequences_[static_cast<std::size_t>(number_)];
}

const std::vector<std::int32_t> & SessionState::tokens() const {
    return sequence().tokens;
}

bool SessionState::beyond_line() const {
    return sequence().rope_side == arch::RopeSide::beyond;
}

bool SessionState::transposed() const {
    return cached_ && upstream::has_transposed_values(*cached_);
}

const std::string & SessionState::layout() const {
    static const std::string none;
    return cached_ ? upstream::cache_layout(*cached_) : none;
}

bool SessionState::takes_numbers(std::size_t n_tokens) const {
    return cached_ && session().loras_.empty() && session().control_vector_.rows.empty() &&
           upstream::has_room(*cached_, n_tokens);
}

std::vector<StateSegment> SessionState::segments() const {
    std::vector<StateSegment> found;
    if (n_evaluated_ > 0) {
        for (const upstream::CacheSegment & segment : upstream::cache_segments(*cached_)) {
            found.push_back({segment.type, segment.n_bytes});
        }
    }
    return found;
}

void SessionState::check_range(std::uint64_t offset, std::size_t n_bytes) const {
    if (!cached_ || offset > n_bytes_ || n_bytes > n_bytes_ - offset) {
        throw Error(ErrorKind::input, "session: there are no such bytes in its cache.");
    }
}

void SessionState::read(std::uint64_t offset, std::uint8_t * out, std::size_t n_bytes) const {
    check_range(offset, n_bytes);
    upstream::get_numbers(*cached_, offset, out, n_bytes);
}

void SessionState::check(const std::vector<std::int32_t> & tokens, std::size_t n_evaluated) const {
    if (tokens.size() > static_cast<std::size_t>(session().n_ctx())) {
        throw Error(ErrorKind::session, std::to_string(tokens.size()) +
                                            " tokens do not fit into n_ctx = " + std::to_string(session().n_ctx()) +
                                            ". Make a session with a larger n_ctx.");
    }
    const int n_vocab = session().model_->n_vocab();
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "load: token " + std::to_string(token) + " is not in the vocabulary of " +
                                              std::to_string(n_vocab) + ".");
        }
    }
    if (n_evaluated > tokens.size() || (n_evaluated > 0 && !takes_numbers(n_evaluated))) {
        throw Error(ErrorKind::input, "load: there is no place for the numbers of so many tokens.");
    }
}

void SessionState::begin(std::vector<std::int32_t> tokens, std::size_t n_evaluated, bool beyond_line) {
    check(tokens, n_evaluated);
    begun_.emplace();
    begun_->tokens = std::move(tokens);
    begun_->n_evaluated = n_evaluated;
    begun_->rope_side = beyond_line ? arch::RopeSide::beyond : arch::RopeSide::within;
    n_evaluated_ = n_bytes_ = 0;
    session().rows_.clear();
    session().keep(number_, 0);
    if (n_evaluated == 0) {
        return;
    }
    if (!upstream::take_cells(*cached_, n_evaluated)) {
        throw Error(ErrorKind::session,
                    "load: the cache has no room for " + std::to_string(n_evaluated) + " tokens. Reset the session.");
    }
    n_evaluated_ = n_evaluated;
    n_bytes_ = n_evaluated_ * token_bytes();
}

void SessionState::write(std::uint64_t offset, const std::uint8_t * numbers, std::size_t n_bytes) {
    check_range(offset, n_bytes);
    if (!begun_) {
        throw Error(ErrorKind::input, "session: nothing was begun that numbers could be written for.");
    }
    upstream::set_numbers(*cached_, offset, numbers, n_bytes);
}

void SessionState::finish() {
    if (begun_) {
        sequence() = std::move(*begun_);
        begun_.reset();
    }
}

bool has_finite_numbers(int type, const std::uint8_t * blocks, std::size_t n_bytes) {
    const Exponents exponents = exponents_of(type);
    for (std::size_t block = 0; block + exponents.stride <= n_bytes; block += exponents.stride) {
        for (std::size_t i = 0; i < exponents.count; ++i) {
            std::uint16_t bits = 0;
            std::memcpy(&bits, blocks + block + exponents.first + i * sizeof(bits), sizeof(bits));
            if ((bits & exponents.mask) == exponents.mask) {
                return false;
            }
        }
    }
    return true;
}

}  // namespace phiggml
