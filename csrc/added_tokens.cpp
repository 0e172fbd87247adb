#include "added_tokens.h"

#include <algorithm>
#include <utility>

#include "unicode_class.h"

namespace phiggml {

namespace {

std::size_t skip_space_before(std::string_view text, std::size_t end) {
    while (end > 0 && (unicode_class(character_before(text, end)) & class_space) != 0) {
        do {
            --end;
        } while (end > 0 && (static_cast<std::uint8_t>(text[end]) & 0xc0) == 0x80);
    }
    return end;
}

std::size_t skip_space_after(std::string_view text, std::size_t begin) {
    while (begin < text.size() && (unicode_class(character_at(text, begin)) & class_space) != 0) {
        begin += character_length(text, begin);
    }
    return begin;
}

bool within_word(std::string_view text, std::size_t begin, std::size_t end) {
    const bool before = begin > 0 && (unicode_class(character_before(text, begin)) & class_word) != 0;
    return before || (end < text.size() && (unicode_class(character_at(text, end)) & class_word) != 0);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(),
              [](const AddedToken & left, const AddedToken & right) { return left.text < right.text; });
    first_.fill(tokens_.size());
    for (std::size_t i = tokens_.size(); i-- > 0;) {
        first_[static_cast<std::uint8_t>(tokens_[i].text[0])] = i;
    }
    for (std::size_t byte = 256; byte-- > 0;) {
        first_[byte] = std::min(first_[byte], first_[byte + 1]);
    }
}

const AddedToken * AddedTokens::longest_at(std::string_view text, std::size_t at) const {
    const auto byte = static_cast<std::uint8_t>(text[at]);
    auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(first_[byte]);
    auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(first_[byte + 1]);
    const AddedToken * found = nullptr;
    // All tokens of [begin, end) agree with the text in their first `depth` bytes.
    for (std::size_t depth = 1; begin != end; ++depth) {
        if (begin->text.size() == depth) {
            found = &*begin++;
        }
        if (at + depth == text.size()) {
            break;
        }
        const auto next = static_cast<std::uint8_t>(text[at + depth]);
        const auto byte_of = [depth](const AddedToken & token) { return static_cast<std::uint8_t>(token.text[depth]); };
        begin = std::partition_point(begin, end, [&](const AddedToken & token) { return byte_of(token) < next; });
        end = std::partition_point(begin, end, [&](const AddedToken & token) { return byte_of(token) == next; });
    }
    return found;
}

std::vector<TextPart> AddedTokens::split(std::string_view text, bool parse_special) const {
    std::vector<TextPart> parts;
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size() && !tokens_.empty();) {
        const AddedToken * token = longest_at(text, at);
        if (token == nullptr) {
            ++at;
            continue;
        }
        std::size_t begin = at;
        std::size_t end = at + token->text.size();
        at = end;
        // What was found and is not taken hides other tokens within it all the same.
        if ((token->special && !parse_special) || (token->single_word && within_word(text, begin, end))) {
            continue;
        }
        if (token->lstrip) {
            begin = std::max(skip_space_before(text.substr(0, begin), begin), done);
        }
        if (token->rstrip) {
            end = skip_space_after(text, end);
        }
        if (begin > done) {
            parts.push_back({TextPart::no_token, done, begin});
        }
        // White space that is a token may have been taken by the token before.
        if (begin < end) {
            parts.push_back({token->id, begin, end});
        }
        done = end;
    }
    if (done < text.size()) {
        parts.push_back({TextPart::no_token, done, text.size()});
    }
    return parts;
}

}  // namespace phiggml
