#include "piece_merges.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "unicode_class.h"

namespace phiggml {

namespace {

constexpr std::int32_t no_token = -1;
constexpr std::int32_t none = -1;  // no neighbour
constexpr std::uint64_t no_pair = ~std::uint64_t{0};

// A part of the text that is one piece so far; `length` 0 once it has become part of its left neighbour.
struct Symbol {
    std::int32_t left;
    std::int32_t right;
    std::int32_t token;
    std::size_t begin;
    std::size_t length;
};

std::string utf8_of(std::uint32_t character) {
    if (character < 0x80) {
        return {static_cast<char>(character)};
    }
    return {static_cast<char>(0xc0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3f))};
}

bool stands_for_itself(std::uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
}

std::size_t hash_of(std::uint64_t pair) {
    return static_cast<std::size_t>((pair ^ (pair >> 29)) * 0x9e3779b97f4a7c15U >> 20);
}

void append(std::vector<Symbol> & symbols, std::int32_t token, std::size_t begin, std::size_t length) {
    const auto index = static_cast<std::int32_t>(symbols.size());
    if (index > 0) {
        symbols.back().right = index;
    }
    symbols.push_back({index - 1, none, token, begin, length});
}

void join(std::vector<Symbol> & symbols, std::int32_t at, std::int32_t token) {
    Symbol & left = symbols[at];
    Symbol & right = symbols[left.right];
    left.token = token;
    left.length += right.length;
    left.right = right.right;
    right.length = 0;
    if (left.right != none) {
        symbols[left.right].left = at;
    }
}

// Where the word ends that begins at `begin`: where a space follows anything else.
std::size_t end_of_word(std::string_view text, std::size_t begin) {
    bool spaces_only = true;
    for (std::size_t at = begin; at < text.size(); at += character_length(text, at)) {
        const bool is_space = text.compare(at, shown_space.size(), shown_space) == 0;
        if (is_space && !spaces_only) {
            return at;
        }
        spaces_only = spaces_only && is_space;
    }
    return text.size();
}

}  // namespace

RankedMerges::RankedMerges(const TokensByText & pieces, const std::vector<std::string_view> & merges,
                           TokensByText whole_words)
    : table_(16, Merge{no_pair, 0, no_token}), whole_words_(std::move(whole_words)) {
    std::uint32_t other = 0x100;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        characters_[byte] = utf8_of(stands_for_itself(byte) ? byte : other++);
        const auto piece = pieces.find(characters_[byte]);
        bytes_[byte] = piece == pieces.end() ? no_token : piece->second;
    }
    while (table_.size() < 2 * merges.size()) {
        table_.resize(2 * table_.size(), Merge{no_pair, 0, no_token});
    }
    const auto token_of = [&](std::string_view text) {
        const auto piece = pieces.find(text);
        return piece == pieces.end() ? no_token : piece->second;
    };
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        const std::size_t space = merges[rank].find(' ', 1);
        if (space == std::string_view::npos) {
            continue;
        }
        const std::string_view left = merges[rank].substr(0, space);
        const std::string_view right = merges[rank].substr(space + 1);
        const std::int32_t tokens[] = {token_of(left), token_of(right), token_of(std::string(left).append(right))};
        if (std::find(std::begin(tokens), std::end(tokens), no_token) == std::end(tokens)) {
            insert(pair_of(tokens[0], tokens[1]), static_cast<std::int32_t>(rank), tokens[2]);
        }
    }
}

void RankedMerges::insert(std::uint64_t pair, std::int32_t rank, std::int32_t token) {
    std::size_t at = hash_of(pair) & (table_.size() - 1);
    while (table_[at].pair != no_pair && table_[at].pair != pair) {
        at = (at + 1) & (table_.size() - 1);
    }
    table_[at] = {pair, rank, token};
}

const RankedMerges::Merge * RankedMerges::find(std::int32_t left, std::int32_t right) const {
    const std::uint64_t pair = pair_of(left, right);
    std::size_t at = hash_of(pair) & (table_.size() - 1);
    while (table_[at].pair != no_pair && table_[at].pair != pair) {
        at = (at + 1) & (table_.size() - 1);
    }
    return table_[at].pair == pair ? &table_[at] : nullptr;
}

void RankedMerges::merge(std::string_view word, std::vector<std::int32_t> & tokens) const {
    if (!whole_words_.empty()) {
        std::string text;
        for (const char byte : word) {
            text += characters_[static_cast<std::uint8_t>(byte)];
        }
        const auto whole = whole_words_.find(text);
        if (whole != whole_words_.end()) {
            tokens.push_back(whole->second);
            return;
        }
    }
    std::vector<Symbol> symbols;
    for (const char byte : word) {
        const std::int32_t token = bytes_[static_cast<std::uint8_t>(byte)];
        if (token != no_token) {
            append(symbols, token, symbols.size(), 1);
        }
    }
    struct Candidate {
        std::int32_t rank;
        std::int32_t left;
        std::int32_t token;
        // The queue gives the greatest: the lowest rank, and of equals the leftmost.
        bool operator<(const Candidate & other) const {
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };
    std::priority_queue<Candidate> queue;
    const auto consider = [&](std::int32_t left) {
        if (left == none || symbols[left].right == none) {
            return;
        }
        if (const Merge * merge = find(symbols[left].token, symbols[symbols[left].right].token)) {
            queue.push({merge->rank, left, merge->token});
        }
    };
    for (std::size_t i = 0; i < symbols.size(); ++i) {
        consider(static_cast<std::int32_t>(i));
    }
    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        const Symbol & left = symbols[best.left];
        if (left.length == 0 || left.right == none) {
            continue;
        }
        const Merge * merge = find(left.token, symbols[left.right].token);
        if (merge == nullptr || merge->token != best.token) {
            continue;
        }
        join(symbols, best.left, best.token);
        consider(left.left);
        consider(best.left);
    }
    for (std::int32_t i = symbols.empty() ? none : 0; i != none; i = symbols[i].right) {
        tokens.push_back(symbols[i].token);
    }
}

ScoredPieces::ScoredPieces(std::unordered_map<std::string_view, Piece> pieces,
                           const std::array<std::int32_t, 256> & bytes, std::int32_t unknown)
    : pieces_(std::move(pieces)), bytes_(bytes), unknown_(unknown) {
    // How an unused piece is taken apart depends on all of the text.
    words_apart_ = std::all_of(pieces_.begin(), pieces_.end(), [](const auto & entry) {
        return !entry.second.unused && end_of_word(entry.first, 0) == entry.first.size();
    });
}

class ScoredPieces::Work {
public:
    Work(const ScoredPieces & vocabulary, std::vector<std::int32_t> & tokens)
        : vocabulary_(vocabulary), tokens_(tokens) {}

    void run(std::string_view text) {
        text_ = text;
        symbols_.clear();
        for (std::size_t at = 0; at < text.size(); at += symbols_.back().length) {
            append(symbols_, no_token, at, character_length(text, at));
        }
        for (std::size_t i = 0; i < symbols_.size(); ++i) {
            consider(static_cast<std::int32_t>(i));
        }
        while (!queue_.empty()) {
            const Candidate best = queue_.top();
            queue_.pop();
            const Symbol & left = symbols_[best.left];
            // Of an outdated pair one side has grown, or is gone.
            if (left.length == 0 || left.right == none || symbols_[left.right].begin != best.middle ||
                left.length + symbols_[left.right].length != best.length) {
                continue;
            }
            join(symbols_, best.left, no_token);
            consider(left.left);
            consider(best.left);
        }
        for (std::int32_t i = symbols_.empty() ? none : 0; i != none; i = symbols_[i].right) {
            emit(text_.substr(symbols_[i].begin, symbols_[i].length));
        }
    }

private:
    struct Candidate {
        float score;
        std::int32_t left;
        std::size_t middle;
        std::size_t length;
        bool operator<(const Candidate & other) const {
            return score != other.score ? score < other.score : left > other.left;
        }
    };

    void consider(std::int32_t index) {
        if (index == none || symbols_[index].right == none) {
            return;
        }
        const Symbol & left = symbols_[index];
        const Symbol & right = symbols_[left.right];
        const std::string_view whole = text_.substr(left.begin, left.length + right.length);
        const auto piece = vocabulary_.pieces_.find(whole);
        if (piece != vocabulary_.pieces_.end()) {
            queue_.push({piece->second.score, index, right.begin, whole.size()});
            if (piece->second.unused) {
                halves_[whole] = left.length;
            }
        }
    }

    // An unused piece gives what it was made of. The recursion is as deep as pieces are long at most.
    void emit(std::string_view text) {
        const auto piece = vocabulary_.pieces_.find(text);
        if (piece == vocabulary_.pieces_.end()) {
            emit_bytes(text);
            return;
        }
        const auto half = piece->second.unused ? halves_.find(text) : halves_.end();
        if (half == halves_.end()) {
            tokens_.push_back(piece->second.id);
            unknown_last_ = false;
            return;
        }
        emit(text.substr(0, half->second));
        emit(text.substr(half->second));
    }

    void emit_bytes(std::string_view text) {
        for (const char byte : text) {
            const std::int32_t token = vocabulary_.bytes_[static_cast<std::uint8_t>(byte)];
            if (token != no_token) {
                tokens_.push_back(token);
            } else if (!unknown_last_) {
                // Unknown characters in a row are one.
                tokens_.push_back(vocabulary_.unknown_);
            }
            unknown_last_ = token == no_token;
        }
    }

    const ScoredPieces & vocabulary_;
    std::string_view text_;
    std::vector<std::int32_t> & tokens_;
    std::vector<Symbol> symbols_;
    std::priority_queue<Candidate> queue_;
    std::unordered_map<std::string_view, std::size_t> halves_;
    bool unknown_last_ = false;
};

void ScoredPieces::merge(std::string_view text, std::vector<std::int32_t> & tokens) const {
    Work work(*this, tokens);
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = words_apart_ ? end_of_word(text, begin) : text.size();
        work.run(text.substr(begin, end - begin));
        begin = end;
    }
}

}  // namespace phiggml
