// Tokens that are found in a text as they are, before the rest is merged: chat markers and what was added to a
// vocabulary. They are found in the manner of the tokenizers library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phiggml {

struct AddedToken {
    std::int32_t id = 0;
    std::string text;
    bool special = false;      // text as long as special tokens are not asked for
    bool lstrip = false;       // takes the white space on its left
    bool rstrip = false;       // and on its right
    bool single_word = false;  // not within a word
};

// A part of a text: a token, or what is between tokens.
struct TextPart {
    static constexpr std::int32_t no_token = -1;

    std::int32_t id = no_token;
    std::size_t begin = 0;
    std::size_t end = 0;
};

class AddedTokens {
public:
    explicit AddedTokens(std::vector<AddedToken> tokens);

    // The text as tokens and what is between them. Of several tokens that begin at one character the longest is taken.
    std::vector<TextPart> split(std::string_view text, bool parse_special) const;

    bool empty() const { return tokens_.empty(); }

private:
    const AddedToken * longest_at(std::string_view text, std::size_t at) const;

    std::vector<AddedToken> tokens_;      // sorted by their texts, which are distinct
    std::vector<std::size_t> prefixes_;   // for each the longest other token that it begins with
    std::array<std::size_t, 257> first_;  // the first token that begins with a byte, or a greater one
};

}  // namespace phiggml
