// What a session holds of one sequence, to be written to a file and put back: its tokens, and what the model computed
// of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "session.h"
#include "upstream/llama_kv_cache.h"

namespace phiggml {

// Numbers of one type in a row: what a file has of a cache is one segment behind the other, and nothing of where they
// lie. Upstream's own saved states say that too, and are believed.
struct StateSegment {
    int type;
    std::uint64_t n_bytes;
};

class SessionState {
public:
    // Nobody else can use the session until this is closed.
    SessionState(Session & session, std::int64_t sequence);
    ~SessionState() { close(); }
    SessionState(const SessionState &) = delete;
    SessionState & operator=(const SessionState &) = delete;

    const std::vector<std::int32_t> & tokens() const;

    // How many of the tokens, from the first on, have numbers that can be read: none where a LoRA adapter or a control
    // vector took part, or where the memory is more than a cell per token.
    std::size_t n_evaluated() const { return n_evaluated_; }
    bool beyond_line() const;  // of long rope

    int type_k() const { return session().settings_.type_k; }
    int type_v() const { return session().settings_.type_v; }
    bool transposed() const;
    const std::string & layout() const;  // two caches of the same one hold a token's numbers alike; empty: none

    std::uint64_t token_bytes() const { return cached_ ? upstream::token_bytes(*cached_) : 0; }

    // Whether the numbers of so many tokens can be put here, and are those that the model would compute now.
    bool takes_numbers(std::size_t n_tokens) const;

    // Of the numbers that can be read or written.
    std::vector<StateSegment> segments() const;
    void read(std::uint64_t offset, std::uint8_t * out, std::size_t n_bytes) const;

    // Puts tokens in the place of those in the sequence, once finish() is called, and makes room for the numbers of the
    // first n_evaluated. Throws Error::input for tokens that the session cannot hold, and changes nothing then.
    void begin(std::vector<std::int32_t> tokens, std::size_t n_evaluated, bool beyond_line);
    void write(std::uint64_t offset, const std::uint8_t * numbers, std::size_t n_bytes);
    void finish();

    // What was begun and not finished leaves the tokens as they were; they are evaluated again by the next call.
    void close();

private:
    Session & session() const;
    Session::Sequence & sequence() const;
    void check(const std::vector<std::int32_t> & tokens, std::size_t n_evaluated) const;
    void check_range(std::uint64_t offset, std::size_t n_bytes) const;

    Session * session_;
    std::int64_t number_;
    std::optional<Session::Use> use_;
    std::shared_lock<std::shared_mutex> adapters_still_;  // upstream may plan graphs anew
    std::shared_ptr<upstream::CachedSequence> cached_;
    std::size_t n_evaluated_ = 0;
    std::uint64_t n_bytes_ = 0;  // in the segments
    std::optional<Session::Sequence> begun_;
};

// Whether whole blocks of a cache's type hold finite numbers only. Others would stay in the cache, and spoil what is
// evaluated beside them, after the sequence is forgotten.
bool has_finite_numbers(int type, const std::uint8_t * blocks, std::size_t n_bytes);

}  // namespace phiggml
