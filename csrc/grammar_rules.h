// A grammar's rules, checked and laid flat: what the automaton walks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace phiggml {

struct CharacterRange {
    std::uint32_t first;
    std::uint32_t last;
};

// Ascending, with gaps between the ranges, and never empty.
using CharacterClass = std::vector<CharacterRange>;

bool contains(const CharacterClass & ranges, std::uint32_t character);

struct GrammarItem {
    enum class Kind : std::uint32_t { end, rule, characters };
    Kind kind;
    std::uint32_t value;  // the rule's or the class's index
};

struct GrammarRules {
    std::vector<GrammarItem> items;                        // each alternative of each rule, closed by an end
    std::vector<std::vector<std::uint32_t>> alternatives;  // of each rule: where they begin in items
    std::vector<std::string> names;
    std::vector<CharacterClass> classes;
    std::uint32_t root = 0;
};

// Parses a text with llama.cpp's parser and checks what that leaves unchecked: rules that are missing, that begin with
// themselves, or that no text can ever complete. Throws Error of kind input, or unsupported.
GrammarRules compile_grammar(const std::string & text);

}  // namespace phiggml
