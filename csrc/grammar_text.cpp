#include "grammar_text.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "gguf_text.h"

namespace phiggml {

namespace {

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || is_digit(c);
}

bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

bool begins_character(char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

// Where a part of the text ends, each as upstream's parser sees it. What is no grammar at all is left to that.
class GrammarScan {
public:
    explicit GrammarScan(const std::string & text) : text_(text) {}

    void run() {
        while (at_ < text_.size()) {
            step(text_[at_]);
            if (n_elements_ > most_grammar_elements || n_name_bytes_ > most_grammar_names) {
                fail(at_, "with its repetitions written out the grammar has too many parts (2^20 are taken)");
            }
        }
    }

private:
    [[noreturn]] void fail(std::size_t position, const std::string & fault, ErrorKind kind = ErrorKind::input) const {
        throw grammar_error(text_, position, fault, kind);
    }

    void step(char c) {
        switch (c) {
            case '#': skip_blanks(); return;
            case '"': literal(); return;
            case '[': characters(); return;
            case '(': group(); return;
            case ')':
                depth_ -= depth_ > 0 ? 1 : 0;
                symbol(1);
                break;
            case '.': symbol(1); break;
            case '*':
            case '+': repeated(1, 1, true); break;
            case '?': repeated(0, 1, false); break;
            case '{': repetition(); return;
            case ':':
                if (text_.compare(at_, 3, "::=") == 0) {
                    define();
                }
                break;
            case '<':
            case '!': fail(at_, "tokens are not taken, for a grammar is about text", ErrorKind::unsupported);
            default:
                if (is_name(c)) {
                    name();
                    return;
                }
        }
        ++at_;
    }

    void symbol(std::size_t n_elements) {
        last_ = n_elements;
        n_elements_ += n_elements;
    }

    void name() {
        word_ = at_;
        while (at_ < text_.size() && is_name(text_[at_])) {
            ++at_;
        }
        word_length_ = at_ - word_;
        symbol(1);
    }

    void define() {
        const auto [earlier, is_new] = defined_.emplace(text_.substr(word_, word_length_), word_);
        if (!is_new) {
            const auto line =
                std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(earlier->second), '\n');
            fail(word_, "this rule is defined already, on line " + std::to_string(line + 1));
        }
        rule_name_length_ = word_length_;
        at_ += 2;
    }

    void literal() {
        std::size_t n = 0;
        for (++at_; at_ < text_.size() && text_[at_] != '"'; ++n) {
            skip_character();
        }
        ++at_;
        symbol(n);
    }

    // Upstream takes [] and [^] for nothing at all.
    void characters() {
        const std::size_t start = at_++;
        at_ += at_ < text_.size() && text_[at_] == '^' ? 1 : 0;
        std::size_t n = 0;
        for (; at_ < text_.size() && text_[at_] != ']'; ++n) {
            skip_character();
        }
        if (n == 0) {
            fail(start, "there are no characters between these brackets");
        }
        ++at_;
        symbol(n);
    }

    void skip_character() {
        at_ += text_[at_] == '\\' && at_ + 1 < text_.size() ? 2 : 1;
        while (at_ < text_.size() && !begins_character(text_[at_])) {
            ++at_;
        }
    }

    void group() {
        if (++depth_ > most_grammar_nesting) {
            fail(at_, "parentheses are nested deeper than 200");
        }
        made_up(1);
        ++at_;
    }

    // Each part of a rule that the parser makes a rule of its own is named after it.
    void made_up(std::size_t n_rules) {
        n_elements_ += 2 * n_rules;
        n_name_bytes_ += n_rules * (rule_name_length_ + 8);
    }

    void skip_blanks() {
        while (at_ < text_.size() && (is_blank(text_[at_]) || text_[at_] == '#')) {
            at_ = text_[at_] == '#' ? std::min(text_.find_first_of("\r\n", at_), text_.size()) : at_ + 1;
        }
    }

    std::size_t number() {
        std::size_t value = 0;
        const std::size_t start = at_;
        for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
            value = std::min<std::size_t>(value * 10 + static_cast<std::size_t>(text_[at_] - '0'), 1 << 20);
        }
        if (value > most_grammar_repetitions) {
            fail(start, "more than 2000 repetitions are not taken");
        }
        return value;
    }

    void repetition() {
        const std::size_t start = at_++;
        skip_blanks();
        const std::size_t least = number();
        skip_blanks();
        std::size_t most = least;
        bool unbounded = false;
        if (at_ < text_.size() && text_[at_] == ',') {
            ++at_;
            skip_blanks();
            unbounded = at_ >= text_.size() || !is_digit(text_[at_]);
            most = unbounded ? least : number();
        }
        if (most < least) {
            fail(start, "the first number of repetitions is above the second");
        }
        repeated(least, most, unbounded);
    }

    void repeated(std::size_t least, std::size_t most, bool unbounded) {
        const std::size_t n_rules = unbounded ? 1 : most - least;
        n_elements_ += (std::max<std::size_t>(least, 1) - 1 + n_rules) * last_;
        made_up(n_rules);
        last_ = std::max<std::size_t>(least, 1) * last_ + 1;
    }

    const std::string & text_;
    std::size_t at_ = 0;
    std::size_t depth_ = 0;
    std::size_t last_ = 0;  // elements that a repetition would repeat
    std::size_t n_elements_ = 0;
    std::size_t n_name_bytes_ = 0;
    std::size_t word_ = 0;
    std::size_t word_length_ = 0;
    std::size_t rule_name_length_ = 0;
    std::unordered_map<std::string, std::size_t> defined_;
};

}  // namespace

void check_grammar_text(const std::string & text) {
    if (text.size() > most_grammar_bytes) {
        throw Error(ErrorKind::input, "grammar: the text has " + std::to_string(text.size()) +
                                          " bytes; at most 2^20 are taken. Make it shorter.");
    }
    if (!is_utf8(text) || text.find('\0') != std::string::npos) {
        throw Error(ErrorKind::input, "grammar: the text is no UTF-8, or holds NUL. Correct the grammar.");
    }
    GrammarScan(text).run();
}

Error grammar_error(const std::string & text, std::size_t position, const std::string & fault, ErrorKind kind) {
    const auto here = text.begin() + static_cast<std::ptrdiff_t>(std::min(position, text.size()));
    const auto line = 1 + std::count(text.begin(), here, '\n');
    const auto rest = std::find_if(here, text.end(), [](char c) { return c == '\n' || c == '\r'; });
    const std::string piece(here, std::min(here + std::min<std::ptrdiff_t>(rest - here, 40), text.end()));
    return Error(kind, "grammar: line " + std::to_string(line) + ", " +
                           (piece.empty() ? "at its end" : "at " + quoted(piece)) + ": " + fault +
                           ". Correct the grammar.");
}

}  // namespace phiggml
