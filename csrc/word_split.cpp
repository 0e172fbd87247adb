#include "word_split.h"

#include <cstdint>
#include <utility>

#include "unicode_class.h"

namespace phiggml {

namespace {

constexpr std::uint8_t letter_or_number = class_letter | class_number;
constexpr std::uint8_t upper_part = class_upper | class_other_letter | class_mark;
constexpr std::uint8_t lower_part = class_lower | class_other_letter | class_mark;
constexpr char32_t long_s = 0x17f;  // S where case is ignored

// A text as characters with their classes. Positions count characters; what lies beyond the end has no class.
class Characters {
public:
    explicit Characters(std::string_view text) : text_(text) {
        for (std::size_t at = 0; at < text.size(); at += character_length(text, at)) {
            begins_.push_back(at);
            classes_.push_back(unicode_class(character_at(text, at)));
        }
        begins_.push_back(text.size());
    }

    std::size_t size() const { return classes_.size(); }
    std::size_t offset(std::size_t i) const { return begins_[i]; }
    bool has(std::size_t i, std::uint8_t classes) const { return i < size() && (classes_[i] & classes) != 0; }
    bool lacks(std::size_t i, std::uint8_t classes) const { return i < size() && (classes_[i] & classes) == 0; }
    bool is(std::size_t i, char character) const { return i < size() && text_[begins_[i]] == character; }
    bool is_break(std::size_t i) const { return is(i, '\r') || is(i, '\n'); }

    // An ASCII letter in lower case, where case is ignored.
    char32_t folded(std::size_t i) const {
        if (i >= size()) {
            return 0;
        }
        const char32_t character = character_at(text_, begins_[i]);
        return character == long_s ? U's' : character >= U'A' && character <= U'Z' ? character + 32 : character;
    }

    // The first position from i on whose character has none of the classes.
    std::size_t end_of(std::size_t i, std::uint8_t classes) const {
        while (has(i, classes)) {
            ++i;
        }
        return i;
    }

    std::size_t end_of_lacking(std::size_t i, std::uint8_t classes) const {
        while (lacks(i, classes)) {
            ++i;
        }
        return i;
    }

private:
    std::string_view text_;
    std::vector<std::size_t> begins_;
    std::vector<std::uint8_t> classes_;
};

// Each of the functions below says where a match that begins at i ends, or i when there is none.

// 's 't 're 've 'm 'll 'd
std::size_t contraction(const Characters & text, std::size_t i, bool any_case) {
    if (!text.is(i, '\'')) {
        return i;
    }
    const auto letter = [&](std::size_t at, char lower) {
        return any_case ? text.folded(at) == static_cast<char32_t>(lower) : text.is(at, lower);
    };
    for (const char single : {'s', 't', 'm', 'd'}) {
        if (letter(i + 1, single)) {
            return i + 2;
        }
    }
    for (const auto & [first, second] : {std::pair{'r', 'e'}, std::pair{'v', 'e'}, std::pair{'l', 'l'}}) {
        if (letter(i + 1, first) && letter(i + 2, second)) {
            return i + 3;
        }
    }
    return i;
}

//  ?[classes]+
std::size_t spaced_run(const Characters & text, std::size_t i, std::uint8_t classes) {
    const std::size_t begin = text.is(i, ' ') && text.has(i + 1, classes) ? i + 1 : i;
    const std::size_t end = text.end_of(begin, classes);
    return end > begin ? end : i;
}

//  ?[^\s\p{L}\p{N}]+
std::size_t symbols(const Characters & text, std::size_t i) {
    constexpr std::uint8_t others = class_space | letter_or_number;
    const std::size_t begin = text.is(i, ' ') && text.lacks(i + 1, others) ? i + 1 : i;
    const std::size_t end = text.end_of_lacking(begin, others);
    return end > begin ? end : i;
}

//  ?[^\s\p{L}\p{N}]+[\r\n]*, and o200k takes slashes for line breaks
std::size_t symbols_and_breaks(const Characters & text, std::size_t i, bool slashes) {
    std::size_t end = symbols(text, i);
    if (end > i) {
        while (text.is_break(end) || (slashes && text.is(end, '/'))) {
            ++end;
        }
    }
    return end;
}

// \s+(?!\S)|\s+, after \s*[\r\n]+ where that is an alternative of its own
std::size_t white_space(const Characters & text, std::size_t i, bool to_breaks) {
    const std::size_t end = text.end_of(i, class_space);
    for (std::size_t at = end; to_breaks && at > i; --at) {
        if (text.is_break(at - 1)) {
            return at;
        }
    }
    return end == text.size() || end - i < 2 ? end : end - 1;
}

// \p{N}{1,most}
std::size_t digits(const Characters & text, std::size_t i, std::size_t most) {
    std::size_t end = i;
    while (end - i < most && text.has(end, class_number)) {
        ++end;
    }
    return end;
}

// Whether [^\r\n\p{L}\p{N}] matches.
bool may_precede_word(const Characters & text, std::size_t i) {
    return text.lacks(i, letter_or_number) && !text.is_break(i);
}

// [^\r\n\p{L}\p{N}]?\p{L}+
std::size_t word(const Characters & text, std::size_t i) {
    const std::size_t begin = may_precede_word(text, i) ? i + 1 : i;
    const std::size_t end = text.end_of(begin, class_letter);
    return end > begin ? end : i;
}

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
std::size_t capitalized(const Characters & text, std::size_t i) {
    const std::size_t middle = text.end_of(i, upper_part);
    const std::size_t end = text.end_of(middle, lower_part);
    if (end > middle) {
        return end;
    }
    // The first part gives back until the second has one character.
    for (std::size_t at = middle; at > i; --at) {
        if (text.has(at - 1, lower_part)) {
            return at;
        }
    }
    return i;
}

// [^\r\n\p{L}\p{N}]? before a word in lower case, perhaps capitalized, or else in capitals, with its contraction.
std::size_t cased_word(const Characters & text, std::size_t i) {
    const bool precedes = may_precede_word(text, i);
    std::size_t end = i;
    for (const bool capitals : {false, true}) {
        for (std::size_t begin = precedes ? i + 2 : i + 1; begin-- > i && end == i;) {
            const std::size_t found = capitals ? text.end_of(begin, upper_part) : capitalized(text, begin);
            end = found > begin ? found : i;
        }
    }
    return end > i ? contraction(text, end, true) : i;
}

std::size_t end_of_word(const Characters & text, std::size_t i, WordSplit split) {
    std::size_t end = i;
    const auto matches = [&](std::size_t found) {
        end = found;
        return found > i;
    };
    if (split == WordSplit::gpt2) {
        const bool found = matches(contraction(text, i, false)) || matches(spaced_run(text, i, class_letter)) ||
                           matches(spaced_run(text, i, class_number)) || matches(symbols(text, i)) ||
                           matches(white_space(text, i, false));
        return found ? end : i + 1;
    }
    const bool cased = split == WordSplit::o200k;
    const bool found = (cased && matches(cased_word(text, i))) || (!cased && matches(contraction(text, i, true))) ||
                       (!cased && matches(word(text, i))) ||
                       matches(digits(text, i, split == WordSplit::qwen2 ? 1 : 3)) ||
                       matches(symbols_and_breaks(text, i, cased)) || matches(white_space(text, i, true));
    return found ? end : i + 1;
}

}  // namespace

std::optional<WordSplit> word_split_named(std::string_view name) {
    constexpr std::pair<std::string_view, WordSplit> names[] = {
        {"gpt-2", WordSplit::gpt2},       {"phi-2", WordSplit::gpt2},    {"dbrx", WordSplit::cl100k},
        {"smaug-bpe", WordSplit::cl100k}, {"llama3", WordSplit::cl100k}, {"llama-v3", WordSplit::cl100k},
        {"llama-bpe", WordSplit::cl100k}, {"qwen2", WordSplit::qwen2},   {"gpt-4o", WordSplit::o200k},
    };
    for (const auto & [known, split] : names) {
        if (known == name) {
            return split;
        }
    }
    return std::nullopt;
}

std::vector<std::size_t> split_words(WordSplit split, std::string_view text) {
    const Characters characters(text);
    std::vector<std::size_t> ends;
    for (std::size_t i = 0; i < characters.size();) {
        i = end_of_word(characters, i, split);
        ends.push_back(characters.offset(i));
    }
    return ends;
}

}  // namespace phiggml
