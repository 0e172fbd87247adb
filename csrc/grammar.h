// What an answer may be: a grammar in llama.cpp's notation (GBNF), and one answer's place in it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct llama_token_data_array;

namespace phiggml {

class GrammarAutomaton;
class Model;
struct GrammarRules;

// Parsed and checked. Immutable; answers share it, in many threads.
class Grammar {
public:
    // An answer is what rule "root" stands for. Throws Error of kind input, which says where the fault is, or
    // unsupported where the grammar names tokens.
    static std::shared_ptr<const Grammar> parse(const std::string & gbnf);

    const std::string & text() const { return text_; }
    const std::shared_ptr<const GrammarRules> & rules() const { return rules_; }

private:
    Grammar(std::string text, std::shared_ptr<const GrammarRules> rules);

    std::string text_;
    std::shared_ptr<const GrammarRules> rules_;
};

// For one answer, and one thread at a time. Tokens are read as the text that they add to an answer, which need not be
// whole characters; those without text are never allowed, and those that end an answer exactly where the grammar may
// end. All but the constructor throw Error of kind session where a text can be read in too many ways.
class GrammarState {
public:
    // Throws Error of kind unsupported for a model without a vocabulary.
    GrammarState(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Model> model);
    ~GrammarState();
    GrammarState(const GrammarState &) = delete;
    GrammarState & operator=(const GrammarState &) = delete;

    bool allows(std::int32_t token) const;

    // Sets the logits of tokens that are not allowed to -inf; false when no candidate is left.
    bool mask(llama_token_data_array * candidates) const;

    // 1 for each token of the vocabulary that is allowed.
    std::vector<std::uint8_t> allowed() const;

    // Whether the answer so far is a whole one.
    bool may_end() const;

    // Throws Error of kind session, and stays where it is, where the token is not allowed.
    void accept(std::int32_t token);

private:
    std::int32_t after(std::int32_t token) const;
    void fill_allowed() const;

    std::shared_ptr<const Grammar> grammar_;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<GrammarAutomaton> automaton_;
    mutable std::int32_t state_;
    mutable std::vector<std::int32_t> path_;  // states along one token's bytes
    mutable std::vector<std::uint8_t> allowed_;
};

}  // namespace phiggml
