// The text of each token of a vocabulary, in the order of their bytes: what begins alike is read once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phiggml {

// Some 15 bytes for each token, and its text: 4 MB for 200,064 tokens.
class TokenPieces {
public:
    // pieces[token]; what is empty stands for no text.
    TokenPieces(const std::vector<std::string> & pieces, std::vector<std::int32_t> end_tokens);

    std::size_t n_tokens() const { return ranks_.size(); }
    std::size_t n_pieces() const { return tokens_.size(); }
    const std::vector<std::int32_t> & end_tokens() const { return end_tokens_; }

    // Of the piece of that rank.
    std::int32_t token(std::size_t rank) const { return tokens_[rank]; }
    std::size_t n_shared(std::size_t rank) const { return n_shared_[rank]; }  // bytes that the one before begins with
    std::string_view text(std::size_t rank) const {
        return std::string_view(bytes_).substr(begins_[rank], begins_[rank + 1] - begins_[rank]);
    }
    std::size_t longest() const { return longest_; }

    // Empty for a token without text, or none of the vocabulary's.
    std::string_view text_of(std::int32_t token) const;

private:
    std::vector<std::int32_t> end_tokens_;
    std::vector<std::int32_t> tokens_;
    std::vector<std::uint32_t> n_shared_;
    std::vector<std::uint32_t> begins_;
    std::vector<std::int32_t> ranks_;  // of each token; -1: it has no text
    std::string bytes_;
    std::size_t longest_ = 0;
};

}  // namespace phiggml
