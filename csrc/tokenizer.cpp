#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "added_tokens.h"
#include "llama.h"
#include "piece_merges.h"
#include "word_split.h"

namespace phiggml {

namespace {

std::string read_text(const GgufFile & file, std::string_view key) {
    const GgufEntry * entry = file.find(key);
    if (entry == nullptr || entry->is_array || entry->type != GgufType::string) {
        return {};
    }
    return std::string(file.strings(*entry, 0, 1).texts[0]);
}

bool read_flag(const GgufFile & file, std::string_view key, bool otherwise) {
    const GgufEntry * entry = file.find(key);
    if (entry == nullptr || entry->is_array || entry->type != GgufType::boolean) {
        return otherwise;
    }
    std::uint8_t value = 0;
    file.source().read(entry->offset, 1, &value);
    return value != 0;
}

// Ids of tokens that have a flag; nothing where the file does not say.
std::optional<std::unordered_set<std::int32_t>> read_ids(const GgufFile & file, std::string_view key) {
    const GgufEntry * entry = file.find(key);
    if (entry == nullptr || !entry->is_array || entry->type != GgufType::int32) {
        return std::nullopt;
    }
    std::vector<std::uint8_t> bytes(entry->count * 4);
    file.source().read(entry->offset, bytes.size(), bytes.data());
    std::unordered_set<std::int32_t> ids;
    for (std::size_t at = 0; at < bytes.size(); at += 4) {
        ids.insert(static_cast<std::int32_t>(load_integer<std::uint32_t>(&bytes[at], file.header().big_endian)));
    }
    return ids;
}

// A vocabulary's table as upstream holds it.
class Table {
public:
    explicit Table(const llama_vocab * vocabulary) : vocabulary_(vocabulary) {}

    std::int32_t size() const { return llama_vocab_n_tokens(vocabulary_); }
    std::string_view text(std::int32_t id) const { return llama_vocab_get_text(vocabulary_, id); }
    float score(std::int32_t id) const { return llama_vocab_get_score(vocabulary_, id); }
    bool is(std::int32_t id, int attributes) const { return (llama_vocab_get_attr(vocabulary_, id) & attributes) != 0; }
    bool is_padding(std::int32_t id) const {
        return is(id, LLAMA_TOKEN_ATTR_UNUSED) && text(id) == "[PAD" + std::to_string(id) + "]";
    }

private:
    const llama_vocab * vocabulary_;
};

constexpr int special = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
constexpr int added = special | LLAMA_TOKEN_ATTR_USER_DEFINED;

struct BothAddedTokens {
    AddedTokens in_text;        // found in the text as it was given
    AddedTokens in_normalized;  // found in what the others leave, once that is normalized
};

// Flags are of the file's own keys; without them, of upstream's attributes.
template <typename Normalize>
BothAddedTokens read_added_tokens(const Table & table, const GgufFile & file, Normalize normalize) {
    const auto lstrip = read_ids(file, "phiggml.tokenizer.lstrip");
    const auto rstrip = read_ids(file, "phiggml.tokenizer.rstrip");
    const auto single_word = read_ids(file, "phiggml.tokenizer.single_word");
    const auto normalized = read_ids(file, "phiggml.tokenizer.normalized");
    const auto has = [&table](const std::optional<std::unordered_set<std::int32_t>> & ids, std::int32_t id, int flag) {
        return ids ? ids->count(id) != 0 : table.is(id, flag);
    };
    std::vector<AddedToken> in_text;
    std::vector<AddedToken> in_normalized;
    for (std::int32_t id = 0; id < table.size(); ++id) {
        if (!table.is(id, added)) {
            continue;
        }
        AddedToken token;
        token.id = id;
        token.special = table.is(id, special);
        token.lstrip = has(lstrip, id, LLAMA_TOKEN_ATTR_LSTRIP);
        token.rstrip = has(rstrip, id, LLAMA_TOKEN_ATTR_RSTRIP);
        token.single_word = has(single_word, id, LLAMA_TOKEN_ATTR_SINGLE_WORD);
        const bool is_normalized = normalized && normalized->count(id) != 0;
        token.text = is_normalized ? normalize(table.text(id)) : std::string(table.text(id));
        (is_normalized ? in_normalized : in_text).push_back(std::move(token));
    }
    return {AddedTokens(std::move(in_text)), AddedTokens(std::move(in_normalized))};
}

// Byte-level BPE. Nothing normalizes the text.
class WordTokenizer final : public Tokenizer {
public:
    WordTokenizer(const Table & table, const GgufFile & file, WordSplit split, bool whole_words)
        : split_(split),
          added_(read_added_tokens(table, file, [](std::string_view text) { return std::string(text); })),
          merges_(read_merges(table, file, whole_words)) {}

    std::vector<std::int32_t> encode(std::string_view text, bool parse_special) const override {
        std::vector<std::int32_t> tokens;
        for (const TextPart & part : added_.in_text.split(text, parse_special)) {
            if (part.id != TextPart::no_token) {
                tokens.push_back(part.id);
                continue;
            }
            const std::string_view between = text.substr(part.begin, part.end - part.begin);
            for (const TextPart & inner : added_.in_normalized.split(between, parse_special)) {
                if (inner.id != TextPart::no_token) {
                    tokens.push_back(inner.id);
                } else {
                    encode_words(between.substr(inner.begin, inner.end - inner.begin), tokens);
                }
            }
        }
        return tokens;
    }

private:
    static RankedMerges read_merges(const Table & table, const GgufFile & file, bool whole_words) {
        TokensByText pieces;
        pieces.reserve(static_cast<std::size_t>(table.size()));
        for (std::int32_t id = 0; id < table.size(); ++id) {
            if (!table.is(id, added | LLAMA_TOKEN_ATTR_UNUSED)) {
                pieces.emplace(table.text(id), id);
            }
        }
        TokensByText words = whole_words ? pieces : TokensByText();
        // A piece may be an added token too, such as GPT-2's end of text; merges reach it all the same.
        for (std::int32_t id = 0; id < table.size(); ++id) {
            pieces.emplace(table.text(id), id);
        }
        const GgufEntry * entry = file.find("tokenizer.ggml.merges");
        const GgufStrings merges = entry == nullptr ? GgufStrings() : file.strings(*entry, 0, entry->count);
        return RankedMerges(pieces, merges.texts, std::move(words));
    }

    void encode_words(std::string_view text, std::vector<std::int32_t> & tokens) const {
        std::size_t begin = 0;
        for (const std::size_t end : split_words(split_, text)) {
            merges_.merge(text.substr(begin, end - begin), tokens);
            begin = end;
        }
    }

    WordSplit split_;
    BothAddedTokens added_;
    RankedMerges merges_;
};

std::string with_spaces_shown(std::string_view text) {
    std::string shown;
    for (const char character : text) {
        if (character == ' ') {
            shown += shown_space;
        } else {
            shown += character;
        }
    }
    return shown;
}

// What a token such as <0x0A> stands for.
std::optional<std::uint8_t> byte_named(std::string_view text) {
    if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') {
        return std::nullopt;
    }
    std::uint8_t byte = 0;
    const char * end = text.data() + 5;
    const auto [stop, fault] = std::from_chars(text.data() + 3, end, byte, 16);
    return stop == end && fault == std::errc() ? std::optional(byte) : std::nullopt;
}

// sentencepiece's BPE with byte fallback.
class PieceTokenizer final : public Tokenizer {
public:
    PieceTokenizer(const Table & table, const GgufFile & file)
        : prefix_(read_prefix(file)),
          added_(read_added_tokens(table, file, [this](std::string_view text) { return normalized(text); })),
          pieces_(read_pieces(table)) {}

    std::vector<std::int32_t> encode(std::string_view text, bool parse_special) const override {
        std::vector<std::int32_t> tokens;
        for (const TextPart & part : added_.in_text.split(text, parse_special)) {
            if (part.id != TextPart::no_token) {
                tokens.push_back(part.id);
                continue;
            }
            const std::string between = normalized(text.substr(part.begin, part.end - part.begin));
            for (const TextPart & inner : added_.in_normalized.split(between, parse_special)) {
                if (inner.id != TextPart::no_token) {
                    tokens.push_back(inner.id);
                    continue;
                }
                const bool first = part.begin == 0 && inner.begin == 0;
                encode_pieces(std::string_view(between).substr(inner.begin, inner.end - inner.begin), first, tokens);
            }
        }
        return tokens;
    }

private:
    // Before which texts a space is put.
    enum class Prefix {
        none,
        each,  // what is between added tokens
        // A pre-tokenizer's, which does nothing where there is a space:
        never,
        always,  // what is between added tokens
        first,   // the text's beginning
    };

    static Prefix read_prefix(const GgufFile & file) {
        const std::string scheme = read_text(file, "phiggml.tokenizer.prepend_scheme");
        if (!read_flag(file, "tokenizer.ggml.add_space_prefix", true)) {
            return scheme == "never" ? Prefix::never : Prefix::none;
        }
        return scheme == "first" ? Prefix::first : scheme == "always" ? Prefix::always : Prefix::each;
    }

    // Whether a normalizer shows spaces, before normalized tokens are looked for.
    bool normalizes() const { return prefix_ == Prefix::none || prefix_ == Prefix::each; }

    std::string normalized(std::string_view text) const {
        if (!normalizes()) {
            return std::string(text);
        }
        return (prefix_ == Prefix::each ? std::string(shown_space) : std::string()) + with_spaces_shown(text);
    }

    void encode_pieces(std::string_view text, bool first, std::vector<std::int32_t> & tokens) const {
        if (normalizes()) {
            pieces_.merge(text, tokens);
            return;
        }
        std::string shown = with_spaces_shown(text);
        const bool prefixed = prefix_ == Prefix::always || (prefix_ == Prefix::first && first);
        if (prefixed && shown.compare(0, shown_space.size(), shown_space) != 0) {
            shown.insert(0, shown_space);
        }
        pieces_.merge(shown, tokens);
    }

    static ScoredPieces read_pieces(const Table & table) {
        std::unordered_map<std::string_view, ScoredPieces::Piece> pieces;
        std::array<std::int32_t, 256> bytes;
        bytes.fill(-1);
        std::int32_t unknown = -1;
        for (std::int32_t id = 0; id < table.size(); ++id) {
            const std::string_view text = table.text(id);
            if (const std::optional<std::uint8_t> byte = byte_named(text)) {
                bytes[*byte] = id;
            }
            if (unknown < 0 && table.is(id, LLAMA_TOKEN_ATTR_UNKNOWN)) {
                unknown = id;
            }
            if (!table.is(id, added | LLAMA_TOKEN_ATTR_BYTE) && !table.is_padding(id)) {
                pieces[text] = {id, table.score(id), table.is(id, LLAMA_TOKEN_ATTR_UNUSED)};
            }
        }
        return ScoredPieces(std::move(pieces), bytes, unknown);
    }

    Prefix prefix_;
    BothAddedTokens added_;
    ScoredPieces pieces_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::make(const llama_vocab * vocabulary, const GgufFile & file) {
    const std::string model = read_text(file, "tokenizer.ggml.model");
    const Table table(vocabulary);
    if (model == "llama" && llama_vocab_type(vocabulary) == LLAMA_VOCAB_TYPE_SPM) {
        return std::make_unique<PieceTokenizer>(table, file);
    }
    const std::string name = read_text(file, "tokenizer.ggml.pre");
    const std::optional<WordSplit> split = word_split_named(name);
    if (model == "gpt2" && split && llama_vocab_type(vocabulary) == LLAMA_VOCAB_TYPE_BPE) {
        const bool whole_words = name == "llama-bpe" || name == "llama3" || name == "llama-v3";
        return std::make_unique<WordTokenizer>(table, file, *split, whole_words);
    }
    return nullptr;
}

std::unordered_set<std::int32_t> further_end_tokens(const GgufFile & file) {
    return read_ids(file, "phiggml.tokenizer.end_ids").value_or(std::unordered_set<std::int32_t>());
}

}  // namespace phiggml
