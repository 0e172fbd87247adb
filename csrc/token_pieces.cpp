#include "token_pieces.h"

#include <algorithm>
#include <utility>

namespace phiggml {

TokenPieces::TokenPieces(const std::vector<std::string> & pieces, std::vector<std::int32_t> end_tokens)
    : end_tokens_(std::move(end_tokens)), ranks_(pieces.size(), -1) {
    for (std::size_t token = 0; token < pieces.size(); ++token) {
        if (!pieces[token].empty()) {
            tokens_.push_back(static_cast<std::int32_t>(token));
        }
    }
    const auto piece = [&](std::int32_t token) -> const std::string & {
        return pieces[static_cast<std::size_t>(token)];
    };
    std::stable_sort(tokens_.begin(), tokens_.end(),
                     [&](std::int32_t a, std::int32_t b) { return piece(a) < piece(b); });
    begins_.push_back(0);
    for (std::size_t rank = 0; rank < tokens_.size(); ++rank) {
        const std::string & text = piece(tokens_[rank]);
        std::size_t n_shared = 0;
        if (rank > 0) {
            const std::string & before = piece(tokens_[rank - 1]);
            const std::size_t n = std::min(before.size(), text.size());
            n_shared = static_cast<std::size_t>(
                std::mismatch(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(n), before.begin()).first -
                text.begin());
        }
        n_shared_.push_back(static_cast<std::uint32_t>(n_shared));
        bytes_ += text;
        begins_.push_back(static_cast<std::uint32_t>(bytes_.size()));
        ranks_[static_cast<std::size_t>(tokens_[rank])] = static_cast<std::int32_t>(rank);
        longest_ = std::max(longest_, text.size());
    }
}

std::string_view TokenPieces::text_of(std::int32_t token) const {
    if (token < 0 || static_cast<std::size_t>(token) >= ranks_.size()) {
        return {};
    }
    const std::int32_t rank = ranks_[static_cast<std::size_t>(token)];
    return rank < 0 ? std::string_view() : text(static_cast<std::size_t>(rank));
}

}  // namespace phiggml
