// What llama_grammar.cpp adds to the llama library: upstream's parser of grammars, which says where it failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "export.h"

namespace phiggml::upstream {

// The values are upstream's.
enum class GrammarElementKind : std::uint32_t {
    end = 0,
    alternative = 1,
    rule = 2,
    character = 3,
    not_character = 4,
    range_end = 5,
    further_character = 6,
    any_character = 7,
    token = 8,
    not_token = 9,
};

struct GrammarElement {
    GrammarElementKind kind;
    std::uint32_t value;  // a code point, or a rule's index
};

struct ParsedGrammar {
    std::vector<std::string> names;                  // of each rule; those that the parser made up hold '_'
    std::vector<std::vector<GrammarElement>> rules;  // empty: named but never defined
    std::string fault;                               // why it stopped; empty: it did not
    std::size_t position = 0;                        // of the fault in the text
};

// The text must have passed our own look at its size, nesting and repetitions. Prints nothing.
PHIGGML_UPSTREAM_API ParsedGrammar parse_grammar(const std::string & text);

}  // namespace phiggml::upstream
