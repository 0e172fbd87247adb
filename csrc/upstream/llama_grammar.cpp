#include "llama_grammar.h"

#include "llama-grammar.h"

namespace phiggml::upstream {

namespace {

static_assert(static_cast<int>(GrammarElementKind::end) == LLAMA_GRETYPE_END);
static_assert(static_cast<int>(GrammarElementKind::alternative) == LLAMA_GRETYPE_ALT);
static_assert(static_cast<int>(GrammarElementKind::rule) == LLAMA_GRETYPE_RULE_REF);
static_assert(static_cast<int>(GrammarElementKind::character) == LLAMA_GRETYPE_CHAR);
static_assert(static_cast<int>(GrammarElementKind::not_character) == LLAMA_GRETYPE_CHAR_NOT);
static_assert(static_cast<int>(GrammarElementKind::range_end) == LLAMA_GRETYPE_CHAR_RNG_UPPER);
static_assert(static_cast<int>(GrammarElementKind::further_character) == LLAMA_GRETYPE_CHAR_ALT);
static_assert(static_cast<int>(GrammarElementKind::any_character) == LLAMA_GRETYPE_CHAR_ANY);
static_assert(static_cast<int>(GrammarElementKind::token) == LLAMA_GRETYPE_TOKEN);
static_assert(static_cast<int>(GrammarElementKind::not_token) == LLAMA_GRETYPE_TOKEN_NOT);

const char * skip_blank(const char * text) {
    while (*text == ' ' || *text == '\t' || *text == '\r' || *text == '\n' || *text == '#') {
        if (*text == '#') {
            while (*text != '\0' && *text != '\r' && *text != '\n') {
                ++text;
            }
        } else {
            ++text;
        }
    }
    return text;
}

// Many of the parser's messages end with " at " and all the text that was left.
void locate_fault(const std::string & message, const std::string & text, std::size_t rule, ParsedGrammar & grammar) {
    const std::size_t at = message.find(" at ");
    const std::size_t n_left = at == std::string::npos ? 0 : message.size() - at - 4;
    const bool names_place = at != std::string::npos && n_left <= text.size() &&
                             text.compare(text.size() - n_left, n_left, message, at + 4, n_left) == 0;
    grammar.fault = names_place ? message.substr(0, at) : message;
    grammar.position = names_place ? text.size() - n_left : rule;
}

}  // namespace

ParsedGrammar parse_grammar(const std::string & text) {
    ParsedGrammar grammar;
    llama_grammar_parser parser;
    const char * rule = skip_blank(text.c_str());
    try {
        while (*rule != '\0') {
            rule = parser.parse_rule(rule);
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & failure) {
        locate_fault(failure.what(), text, static_cast<std::size_t>(rule - text.c_str()), grammar);
        return grammar;
    }
    grammar.names.resize(parser.symbol_ids.size());
    for (const auto & [name, id] : parser.symbol_ids) {
        grammar.names.at(id) = name;
    }
    grammar.rules.resize(grammar.names.size());
    for (std::size_t i = 0; i < parser.rules.size(); ++i) {
        grammar.rules.at(i).reserve(parser.rules[i].size());
        for (const llama_grammar_element & element : parser.rules[i]) {
            grammar.rules[i].push_back({static_cast<GrammarElementKind>(element.type), element.value});
        }
        parser.rules[i] = {};
    }
    return grammar;
}

}  // namespace phiggml::upstream
