#include "grammar.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "error.h"
#include "grammar_automaton.h"
#include "grammar_rules.h"
#include "llama.h"
#include "model.h"
#include "token_pieces.h"

namespace phiggml {

namespace {

// Of fewer candidates than this share of the vocabulary each is looked at by itself.
constexpr std::size_t few = 16;

}  // namespace

Grammar::Grammar(std::string text, std::shared_ptr<const GrammarRules> rules)
    : text_(std::move(text)), rules_(std::move(rules)) {}

std::shared_ptr<const Grammar> Grammar::parse(const std::string & gbnf) {
    auto rules = std::make_shared<const GrammarRules>(compile_grammar(gbnf));
    try {
        const GrammarAutomaton automaton(rules);
    } catch (const Error & failure) {
        throw Error(ErrorKind::input, failure.message());
    }
    return std::shared_ptr<const Grammar>(new Grammar(gbnf, std::move(rules)));
}

GrammarState::GrammarState(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Model> model)
    : grammar_(std::move(grammar)), model_(std::move(model)) {
    if (!model_->has_vocabulary()) {
        throw Error(ErrorKind::unsupported, "grammar: this model has no vocabulary. Generate without a grammar.");
    }
    const TokenPieces & pieces = model_->pieces();
    automaton_ = std::make_unique<GrammarAutomaton>(grammar_->rules());
    state_ = automaton_->start();
    path_.resize(pieces.longest() + 1);
}

GrammarState::~GrammarState() = default;

bool GrammarState::may_end() const {
    return automaton_->may_end(state_);
}

std::int32_t GrammarState::after(std::int32_t token) const {
    const std::string_view text = model_->pieces().text_of(token);
    GrammarAutomaton::State state = text.empty() ? GrammarAutomaton::dead : state_;
    for (std::size_t i = 0; i < text.size() && state != GrammarAutomaton::dead; ++i) {
        state = automaton_->next(state, static_cast<std::uint8_t>(text[i]));
    }
    return state;
}

bool GrammarState::allows(std::int32_t token) const {
    state_ = automaton_->refresh(state_);
    return model_->is_end_of_generation(token) ? may_end() : after(token) != GrammarAutomaton::dead;
}

bool GrammarState::mask(llama_token_data_array * candidates) const {
    const std::size_t n_tokens = model_->pieces().n_tokens();
    const bool each = candidates->size < n_tokens / few;
    if (!each) {
        fill_allowed();
    }
    bool any = false;
    for (std::size_t i = 0; i < candidates->size; ++i) {
        llama_token_data & candidate = candidates->data[i];
        const auto id = static_cast<std::size_t>(candidate.id);
        if (each ? allows(candidate.id) : (id < n_tokens && allowed_[id] != 0)) {
            any = any || candidate.logit > -std::numeric_limits<float>::infinity();
        } else {
            candidate.logit = -std::numeric_limits<float>::infinity();
        }
    }
    return any;
}

std::vector<std::uint8_t> GrammarState::allowed() const {
    fill_allowed();
    return allowed_;
}

// Goes through all pieces in the order of their bytes. path_ holds the states along the last one, as far as they live.
void GrammarState::fill_allowed() const {
    const TokenPieces & pieces = model_->pieces();
    state_ = automaton_->refresh(state_);
    allowed_.assign(pieces.n_tokens(), 0);
    path_[0] = state_;
    std::size_t n_alive = 0;
    for (std::size_t rank = 0; rank < pieces.n_pieces(); ++rank) {
        const std::size_t n_shared = pieces.n_shared(rank);
        if (n_alive < n_shared) {
            continue;
        }
        const std::string_view text = pieces.text(rank);
        std::size_t i = n_shared;
        GrammarAutomaton::State state = path_[i];
        while (i < text.size()) {
            state = automaton_->next(state, static_cast<std::uint8_t>(text[i]));
            if (state == GrammarAutomaton::dead) {
                break;
            }
            path_[++i] = state;
        }
        n_alive = i;
        if (i == text.size()) {
            allowed_[static_cast<std::size_t>(pieces.token(rank))] = 1;
        }
    }
    if (may_end()) {
        for (const std::int32_t token : pieces.end_tokens()) {
            allowed_[static_cast<std::size_t>(token)] = 1;
        }
    }
}

void GrammarState::accept(std::int32_t token) {
    if (model_->is_end_of_generation(token) && may_end()) {
        return;
    }
    state_ = automaton_->refresh(state_);
    const GrammarAutomaton::State next = after(token);
    if (next == GrammarAutomaton::dead) {
        throw Error(ErrorKind::session, "grammar: token " + std::to_string(token) +
                                            " is not allowed here. Accept only tokens that the grammar allows.");
    }
    state_ = next;
}

}  // namespace phiggml
