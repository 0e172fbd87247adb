// A first look at a grammar's text: what would cost llama.cpp's parser the stack, the memory or the machine's time, or
// what it takes for something else than is written, is refused here.
#pragma once

#include <cstddef>
#include <string>

#include "error.h"

namespace phiggml {

constexpr std::size_t most_grammar_bytes = 1 << 20;     // of text
constexpr std::size_t most_grammar_elements = 1 << 20;  // characters and references, repetitions written out
constexpr std::size_t most_grammar_names = 1 << 25;     // bytes of the names that the parser gives parts of rules
constexpr std::size_t most_grammar_nesting = 200;       // parentheses
constexpr std::size_t most_grammar_repetitions = 2000;  // upstream takes more in {0,n} for no bound at all

// Throws Error of kind input, or unsupported where the grammar names tokens.
void check_grammar_text(const std::string & text);

// "grammar: line 3, at 'x ::=': fault. Correct the grammar."
Error grammar_error(const std::string & text, std::size_t position, const std::string & fault,
                    ErrorKind kind = ErrorKind::input);

}  // namespace phiggml
