#include "grammar_automaton.h"

#include <algorithm>
#include <string>
#include <utility>

#include "error.h"

namespace phiggml {

namespace {

constexpr std::uint32_t first_surrogate = 0xD800, after_surrogates = 0xE000, after_characters = 0x110000;

// What one text may lead to, and how much work one call may do: some 0.3 s on one core, or 200 MB.
constexpr std::size_t most_stacks = 1 << 16;
constexpr std::size_t most_steps = 1 << 23;
constexpr std::size_t steps_of_state = 128;  // to make one; it has a kilobyte
constexpr std::size_t steps_of_node = 4;

// Above it, or many_nodes, what is kept is dropped between tokens: some 50 MB, while most grammars keep less than 1 MB.
constexpr std::size_t many_states = 1 << 14;

[[noreturn]] void fail(const std::string & fault) {
    throw Error(ErrorKind::session, "grammar: the text so far can be read in too many ways (" + fault +
                                        "). Write the grammar so that each text has few readings.");
}

}  // namespace

GrammarAutomaton::GrammarAutomaton(std::shared_ptr<const GrammarRules> rules) : rules_(std::move(rules)) {
    nodes_.push_back({0, 0});
    begin_closure();
    for (const std::uint32_t alternative : rules_->alternatives[rules_->root]) {
        push(alternative, bottom);
    }
    start_ = state_of({close(), 0, 0, 0, false});
}

bool GrammarAutomaton::may_end(State state) const {
    const Place & place = states_[static_cast<std::size_t>(state)].place;
    return place.n_left == 0 && sets_[static_cast<std::size_t>(place.set)].nodes.front() == bottom;
}

GrammarAutomaton::State GrammarAutomaton::refresh(State state) {
    n_steps_ = 0;
    const bool is_large = states_.size() > many_states || nodes_.size() > n_nodes_taken_ || n_kept_ > many_nodes;
    return is_large ? rebuilt(state) : state;
}

// Bytes that begin no character, or one that UTF-8 does not allow, lead nowhere.
GrammarAutomaton::State GrammarAutomaton::make_next(State state, std::uint8_t byte) {
    const Place place = states_[static_cast<std::size_t>(state)].place;
    State next = dead;
    count_step();
    if (place.n_left > 0) {
        if ((byte & 0xC0) == 0x80) {
            const std::uint32_t value = place.value << 6 | (byte & 0x3F);
            next = place.settled ? state_of({place.set, 0, place.n_left - 1, 0, place.n_left > 1})
                                 : begun({place.set, value, place.n_left - 1, place.first, false});
        }
    } else if (byte > 0 && byte < 0x80) {
        next = begun({place.set, byte, 0, 0, false});
    } else if (byte >= 0xC2 && byte < 0xF5) {
        const std::uint32_t n_left = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
        const std::uint32_t first = byte < 0xE0 ? 0x80 : byte < 0xF0 ? 0x800 : 0x10000;
        next = begun({place.set, byte & (0x3FU >> n_left), n_left, first, false});
    }
    states_[static_cast<std::size_t>(state)].next[byte] = next;
    return next;
}

// A state for a character of which these bits are known, unless no character that begins so leads on.
GrammarAutomaton::State GrammarAutomaton::begun(const Place & place) {
    const std::uint32_t low = place.value << (6 * place.n_left);
    const std::uint32_t high = low | ((1U << (6 * place.n_left)) - 1);
    const std::uint32_t first = std::max(low, place.first);
    const std::uint32_t last = std::min(high, after_characters - 1);
    if (first > last) {
        return dead;
    }
    const std::size_t begin = interval_of(place.set, first);
    const std::size_t end = interval_of(place.set, last);
    if (begin == end && first == low && last == high) {
        const State next = target_between(place.set, begin);
        return next == dead ? dead : state_of({next, 0, place.n_left, 0, place.n_left > 0});
    }
    for (std::size_t i = begin; i <= end; ++i) {
        if (target_between(place.set, i) != dead) {
            return state_of(place);
        }
    }
    return dead;
}

GrammarAutomaton::State GrammarAutomaton::state_of(const Place & place) {
    // Only with 1 to 3 bytes left does `first` tell states apart, and then its length in bits does.
    const std::uint32_t kind = place.first >= 0x10000 ? 2 : place.first >= 0x800 ? 1 : 0;
    const std::uint64_t key = static_cast<std::uint64_t>(place.set) << 32 | place.value << 5 | kind << 3 |
                              place.n_left << 1 | (place.settled ? 1U : 0U);
    const auto [entry, is_new] = state_ids_.emplace(key, static_cast<State>(states_.size()));
    if (is_new) {
        states_.push_back({place, {}});
        states_.back().next.fill(unknown);
        count_step(steps_of_state);
    }
    return entry->second;
}

std::size_t GrammarAutomaton::interval_of(State set, std::uint32_t character) {
    StackSet & stacks = sets_[static_cast<std::size_t>(set)];
    if (stacks.bounds.empty()) {
        make_bounds(stacks);
    }
    const auto after = std::upper_bound(stacks.bounds.begin(), stacks.bounds.end(), character);
    return static_cast<std::size_t>(after - stacks.bounds.begin()) - 1;
}

void GrammarAutomaton::make_bounds(StackSet & set) {
    std::vector<std::uint32_t> classes;
    for (const std::uint32_t node : set.nodes) {
        if (node != bottom) {
            classes.push_back(rules_->items[nodes_[node].item].value);
        }
    }
    std::sort(classes.begin(), classes.end());
    classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
    set.bounds = {0, first_surrogate, after_surrogates, after_characters};
    for (const std::uint32_t index : classes) {
        count_step(rules_->classes[index].size());
        for (const CharacterRange & range : rules_->classes[index]) {
            set.bounds.insert(set.bounds.end(), {range.first, range.last + 1});
        }
    }
    std::sort(set.bounds.begin(), set.bounds.end());
    set.bounds.erase(std::unique(set.bounds.begin(), set.bounds.end()), set.bounds.end());
    set.targets.assign(set.bounds.size() - 1, unknown);
}

GrammarAutomaton::State GrammarAutomaton::target_between(State set, std::size_t interval) {
    StackSet & stacks = sets_[static_cast<std::size_t>(set)];
    State & target = stacks.targets[interval];
    if (target != unknown) {
        return target;
    }
    const std::uint32_t character = stacks.bounds[interval];
    if (character >= first_surrogate && character < after_surrogates) {
        target = dead;
        return dead;
    }
    begin_closure();
    count_step(stacks.nodes.size());
    for (const std::uint32_t id : stacks.nodes) {
        const Node node = nodes_[id];
        if (id != bottom && contains(rules_->classes[rules_->items[node.item].value], character)) {
            push(node.item + 1, node.below);
        }
    }
    target = close();
    return target;
}

std::uint32_t GrammarAutomaton::node_of(std::uint32_t item, std::uint32_t below) {
    const std::uint64_t key = static_cast<std::uint64_t>(item) << 32 | below;
    const auto [entry, is_new] = node_ids_.emplace(key, static_cast<std::uint32_t>(nodes_.size()));
    if (is_new) {
        nodes_.push_back({item, below});
        count_step(steps_of_node);
    }
    return entry->second;
}

void GrammarAutomaton::begin_closure() {
    ++closure_;
    todo_.clear();
    found_.clear();
}

void GrammarAutomaton::push(std::uint32_t item, std::uint32_t below) {
    while (rules_->items[item].kind == GrammarItem::Kind::end && below != bottom) {
        item = nodes_[below].item;
        below = nodes_[below].below;
    }
    const bool is_end = rules_->items[item].kind == GrammarItem::Kind::end;
    const std::uint32_t node = is_end ? bottom : node_of(item, below);
    marks_.resize(std::max(marks_.size(), nodes_.size()));
    if (marks_[node] == closure_) {
        return;
    }
    marks_[node] = closure_;
    count_step();
    const bool is_rule = !is_end && rules_->items[item].kind == GrammarItem::Kind::rule;
    (is_rule ? todo_ : found_).push_back(node);
    if (todo_.size() + found_.size() > most_stacks) {
        fail("more than 2^16");
    }
}

// Follows the rules that come next down to characters. A rule at another's end leaves nothing to come back to, so that
// repetitions do not pile up.
GrammarAutomaton::State GrammarAutomaton::close() {
    while (!todo_.empty()) {
        const Node node = nodes_[todo_.back()];
        todo_.pop_back();
        const bool is_last = rules_->items[node.item + 1].kind == GrammarItem::Kind::end;
        const std::uint32_t below = is_last ? node.below : node_of(node.item + 1, node.below);
        for (const std::uint32_t alternative : rules_->alternatives[rules_->items[node.item].value]) {
            push(alternative, below);
        }
    }
    return found_.empty() ? dead : set_of(std::move(found_));
}

GrammarAutomaton::State GrammarAutomaton::set_of(std::vector<std::uint32_t> nodes) {
    std::sort(nodes.begin(), nodes.end());
    const auto [entry, is_new] = set_ids_.emplace(std::move(nodes), static_cast<State>(sets_.size()));
    if (is_new) {
        n_kept_ += entry->first.size();
        sets_.push_back({entry->first, {}, {}});
    }
    return entry->second;
}

void GrammarAutomaton::count_step(std::size_t n) {
    n_steps_ += n;
    if (n_steps_ > most_steps) {
        fail("telling which tokens may follow takes more than 2^23 steps");
    }
}

// Keeps the stacks of one state. What lies below was made before what lies on it, so that one pass moves them all.
GrammarAutomaton::State GrammarAutomaton::rebuilt(State state) {
    const Place place = states_[static_cast<std::size_t>(state)].place;
    std::vector<std::uint32_t> kept = sets_[static_cast<std::size_t>(place.set)].nodes;
    std::vector<bool> is_live(nodes_.size());
    for (std::uint32_t node : kept) {
        for (; !is_live[node]; node = nodes_[node].below) {
            is_live[node] = true;
        }
    }
    const std::vector<Node> nodes = std::exchange(nodes_, {});
    node_ids_.clear();
    sets_.clear();
    set_ids_.clear();
    states_.clear();
    state_ids_.clear();
    marks_.clear();
    n_kept_ = 0;
    nodes_.push_back({0, 0});
    std::vector<std::uint32_t> places(nodes.size());
    for (std::uint32_t i = 1; i < nodes.size(); ++i) {
        if (is_live[i]) {
            places[i] = node_of(nodes[i].item, places[nodes[i].below]);
        }
    }
    n_nodes_taken_ = std::max(many_nodes, 2 * nodes_.size());
    std::transform(kept.begin(), kept.end(), kept.begin(), [&](std::uint32_t node) { return places[node]; });
    return state_of({set_of(std::move(kept)), place.value, place.n_left, place.first, place.settled});
}

}  // namespace phiggml
