#include "added_tokens.h"

#include <algorithm>
#include <utility>

#include "unicode_class.h"

namespace phiggml {

namespace {

constexpr std::size_t none = ~std::size_t{0};

// Down to `begin` at most.
std::size_t skip_space_before(std::string_view text, std::size_t end, std::size_t begin) {
    while (end > begin && (unicode_class(character_before(text, end)) & class_space) != 0) {
        do {
            --end;
        } while (end > begin && (static_cast<std::uint8_t>(text[end]) & 0xc0) == 0x80);
    }
    return end;
}

std::size_t skip_space_after(std::string_view text, std::size_t begin) {
    while (begin < text.size() && (unicode_class(character_at(text, begin)) & class_space) != 0) {
        begin += character_length(text, begin);
    }
    return begin;
}

bool begins_with(std::string_view text, std::string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

bool within_word(std::string_view text, std::size_t begin, std::size_t end) {
    const bool before = begin > 0 && (unicode_class(character_before(text, begin)) & class_word) != 0;
    return before || (end < text.size() && (unicode_class(character_at(text, end)) & class_word) != 0);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::stable_sort(tokens_.begin(), tokens_.end(),
                     [](const AddedToken & left, const AddedToken & right) { return left.text < right.text; });
    // Texts that differ may be normalized to one.
    const auto twins =
        std::unique(tokens_.begin(), tokens_.end(),
                    [](const AddedToken & left, const AddedToken & right) { return left.text == right.text; });
    tokens_.erase(twins, tokens_.end());
    first_.fill(tokens_.size());
    for (std::size_t i = tokens_.size(); i-- > 0;) {
        first_[static_cast<std::uint8_t>(tokens_[i].text[0])] = i;
    }
    for (std::size_t byte = 256; byte-- > 0;) {
        first_[byte] = std::min(first_[byte], first_[byte + 1]);
    }
    for (const AddedToken & token : tokens_) {
        std::size_t beginning = prefixes_.size() - 1;
        while (beginning != none && !begins_with(token.text, tokens_[beginning].text)) {
            beginning = prefixes_[beginning];
        }
        prefixes_.push_back(beginning);
    }
}

const AddedToken * AddedTokens::longest_at(std::string_view text, std::size_t at) const {
    const auto byte = static_cast<std::uint8_t>(text[at]);
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(first_[byte]);
    const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(first_[byte + 1]);
    const std::string_view rest = text.substr(at);
    const auto behind = std::upper_bound(
        begin, end, rest, [](std::string_view wanted, const AddedToken & token) { return wanted < token.text; });
    if (behind == begin) {
        return nullptr;
    }
    // Each token that the rest begins with is also what the last one not behind the rest begins with.
    const auto nearest = static_cast<std::size_t>(behind - tokens_.begin()) - 1;
    const std::string & longest = tokens_[nearest].text;
    const auto shared = static_cast<std::size_t>(
        std::mismatch(longest.begin(), longest.end(), rest.begin(), rest.end()).first - longest.begin());
    std::size_t found = nearest;
    while (found != none && tokens_[found].text.size() > shared) {
        found = prefixes_[found];
    }
    return found == none ? nullptr : &tokens_[found];
}

std::vector<TextPart> AddedTokens::split(std::string_view text, bool parse_special) const {
    std::vector<TextPart> parts;
    std::size_t done = 0;
    std::size_t space_end = 0;  // of the last white space that was skipped
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
            begin = std::max(skip_space_before(text, begin, done), done);
        }
        if (token->rstrip) {
            end = space_end = skip_space_after(text, std::max(end, space_end));
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
