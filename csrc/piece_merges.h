// How the pieces of a vocabulary are put together from a word's characters: by the ranks of merges, or by the scores of
// what they make.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace phiggml {

// U+2581, which stands for a space in sentencepiece's pieces.
constexpr std::string_view shown_space = "\xe2\x96\x81";

// Keys are the texts of tokens, which somebody else keeps.
using TokensByText = std::unordered_map<std::string_view, std::int32_t>;

// Byte-level BPE, as in the tokenizers library.
class RankedMerges {
public:
    // Pieces in which characters stand for bytes, "left right" in the order of their ranks, and words that are not
    // merged.
    RankedMerges(const TokensByText & pieces, const std::vector<std::string_view> & merges, TokensByText whole_words);

    // Appends the tokens of a word. Bytes without a token give nothing.
    void merge(std::string_view word, std::vector<std::int32_t> & tokens) const;

private:
    struct Merge {
        std::uint64_t pair;
        std::int32_t rank;
        std::int32_t token;
    };

    void insert(std::uint64_t pair, std::int32_t rank, std::int32_t token);
    const Merge * find(std::int32_t left, std::int32_t right) const;

    std::array<std::string, 256> characters_;
    std::array<std::int32_t, 256> bytes_;
    std::vector<Merge> table_;  // open addressing; its size is a power of two
    TokensByText whole_words_;
};

// sentencepiece's BPE.
class ScoredPieces {
public:
    struct Piece {
        std::int32_t id = 0;
        float score = 0;
        bool unused = false;  // taken apart again
    };

    // bytes: the tokens of single bytes; -1 where there is none. unknown: what stands for characters without a token.
    ScoredPieces(std::unordered_map<std::string_view, Piece> pieces, const std::array<std::int32_t, 256> & bytes,
                 std::int32_t unknown);

    void merge(std::string_view text, std::vector<std::int32_t> & tokens) const;

private:
    class Work;

    std::unordered_map<std::string_view, Piece> pieces_;
    std::array<std::int32_t, 256> bytes_;
    std::int32_t unknown_;
    bool words_apart_;  // no piece reaches from one word into the next
};

}  // namespace phiggml
