// Reads bytes of UTF-8 against a grammar. Its states are made when they are first reached and kept, so that what was
// read before costs one look into a table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "grammar_rules.h"

namespace phiggml {

class GrammarAutomaton {
public:
    using State = std::int32_t;
    static constexpr State dead = -1;

    // Throws as next() does.
    explicit GrammarAutomaton(std::shared_ptr<const GrammarRules> rules);

    State start() const { return start_; }

    // The state after a byte; dead where neither the grammar nor UTF-8 goes on so, or the byte is NUL. Throws Error of
    // kind session when there are too many ways to read the same text, or it has taken too many steps.
    State next(State state, std::uint8_t byte) {
        const State known = states_[static_cast<std::size_t>(state)].next[byte];
        return known != unknown ? known : make_next(state, byte);
    }

    // Whether the text so far is a whole one.
    bool may_end(State state) const;

    // Begins a new count of steps, and lets go of much that was kept if that has become large; the state in its new
    // place is returned, all others are void.
    State refresh(State state);

private:
    static constexpr State unknown = -2;
    static constexpr std::size_t many_nodes = 1 << 18;
    static constexpr std::uint32_t bottom = 0;  // the stack on which nothing is left to read

    // A place in the rules with where to go on after its rule ends: a stack that shares what lies below. Equal ones are
    // one.
    struct Node {
        std::uint32_t item;
        std::uint32_t below;
    };

    // The stacks that one text may lead to, each with characters next.
    struct StackSet {
        std::vector<std::uint32_t> nodes;
        std::vector<std::uint32_t> bounds;  // between two of them all characters lead to the same set; made late
        std::vector<State> targets;         // which set that is
    };

    // A set of stacks, or a character begun after it: its bits so far, how many bytes are missing, and the first
    // character that may be written so long. When `settled`, all characters that begin so lead to `set`, and only their
    // bytes are still to be counted.
    struct Place {
        State set;
        std::uint32_t value;
        std::uint32_t n_left;
        std::uint32_t first;
        bool settled;
    };

    struct ByteState {
        Place place;
        std::array<State, 256> next;
    };

    State make_next(State state, std::uint8_t byte);
    State begun(const Place & place);
    State state_of(const Place & place);
    State target_between(State set, std::size_t interval);
    void make_bounds(StackSet & set);
    std::size_t interval_of(State set, std::uint32_t character);
    std::uint32_t node_of(std::uint32_t item, std::uint32_t below);
    void begin_closure();
    void push(std::uint32_t item, std::uint32_t below);
    State close();
    State set_of(std::vector<std::uint32_t> nodes);
    void count_step(std::size_t n = 1);
    State rebuilt(State state);

    std::shared_ptr<const GrammarRules> rules_;
    std::vector<Node> nodes_;
    std::unordered_map<std::uint64_t, std::uint32_t> node_ids_;
    std::deque<StackSet> sets_;
    std::map<std::vector<std::uint32_t>, State> set_ids_;
    std::deque<ByteState> states_;
    std::unordered_map<std::uint64_t, State> state_ids_;
    State start_ = dead;
    std::size_t n_steps_ = 0;
    std::size_t n_nodes_taken_ = many_nodes;
    std::size_t n_kept_ = 0;  // nodes in all the sets

    // Of the set being made.
    std::vector<std::uint32_t> marks_;  // of each node: the closure that last saw it
    std::uint32_t closure_ = 0;
    std::vector<std::uint32_t> todo_;
    std::vector<std::uint32_t> found_;
};

}  // namespace phiggml
