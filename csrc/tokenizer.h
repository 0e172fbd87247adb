// Text to token ids as the tokenizers library and sentencepiece make them, for the two kinds of vocabularies that Phi
// models have. llama.cpp's own tokenizer knows another version of Unicode, less of the split expressions, and nothing
// of the flags of added tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "gguf.h"

struct llama_vocab;

namespace phiggml {

class Tokenizer {
public:
    // nullptr for a vocabulary of another kind, which llama.cpp serves. The vocabulary must outlive it; the file is
    // read now only.
    static std::unique_ptr<Tokenizer> make(const llama_vocab * vocabulary, const GgufFile & file);

    virtual ~Tokenizer() = default;
    Tokenizer(const Tokenizer &) = delete;
    Tokenizer & operator=(const Tokenizer &) = delete;

    // Without the tokens that begin and end a text. -1 stands for what has no token. May be called from many threads.
    virtual std::vector<std::int32_t> encode(std::string_view text, bool parse_special) const = 0;

protected:
    Tokenizer() = default;
};

// Tokens that end an answer beyond those that the file can name to llama.cpp.
std::unordered_set<std::int32_t> further_end_tokens(const GgufFile & file);

}  // namespace phiggml
