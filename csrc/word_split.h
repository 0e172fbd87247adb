// The words that BPE tokenizers merge within: what their regular expressions match, in time that grows with the text.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace phiggml {

enum class WordSplit {
    gpt2,    // phi-1 to phi-2
    cl100k,  // Phi-4
    qwen2,   // cl100k with each digit a word
    o200k,   // Phi-4-mini
};

// By llama.cpp's names of pre-tokenizers; none for what is not split here.
std::optional<WordSplit> word_split_named(std::string_view name);

// Where each word ends, in bytes from the text's beginning; the last one ends with the text.
std::vector<std::size_t> split_words(WordSplit split, std::string_view text);

}  // namespace phiggml
