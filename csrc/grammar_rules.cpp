#include "grammar_rules.h"

#include <algorithm>
#include <map>
#include <utility>

#include "error.h"
#include "grammar_text.h"
#include "upstream/llama_grammar.h"

namespace phiggml {

namespace {

using upstream::GrammarElement;
using upstream::GrammarElementKind;

constexpr std::uint32_t last_character = 0x10FFFF;

[[noreturn]] void fail(const std::string & name, const std::string & fault) {
    throw Error(ErrorKind::input, "grammar: rule '" + name + "': " + fault + ". Correct the grammar.");
}

// The parser names the parts of rule x that it makes rules of their own x_3, and no one else can write such a name.
std::string written_name(const std::string & name) {
    return name.substr(0, name.find('_'));
}

CharacterClass joined(CharacterClass ranges) {
    std::sort(ranges.begin(), ranges.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
    CharacterClass whole;
    for (const CharacterRange & range : ranges) {
        if (range.first > range.last || range.first > last_character) {
            continue;
        }
        const std::uint32_t last = std::min(range.last, last_character);
        if (!whole.empty() && range.first <= whole.back().last + 1) {
            whole.back().last = std::max(whole.back().last, last);
        } else {
            whole.push_back({range.first, last});
        }
    }
    return whole;
}

CharacterClass all_but(const CharacterClass & ranges) {
    CharacterClass others;
    std::uint32_t next = 0;
    for (const CharacterRange & range : ranges) {
        if (next < range.first) {
            others.push_back({next, range.first - 1});
        }
        next = range.last + 1;
    }
    if (next <= last_character) {
        others.push_back({next, last_character});
    }
    return others;
}

class RulesBuilder {
public:
    explicit RulesBuilder(upstream::ParsedGrammar & parsed) : parsed_(parsed) {}

    GrammarRules build() {
        rules_.alternatives.resize(parsed_.rules.size());
        for (std::size_t i = 0; i < parsed_.rules.size(); ++i) {
            if (parsed_.rules[i].empty()) {
                fail(written_name(parsed_.names[i]), "it is used but not defined");
            }
            add_rule(i);
            parsed_.rules[i] = {};
        }
        rules_.names = std::move(parsed_.names);
        const auto root = std::find(rules_.names.begin(), rules_.names.end(), "root");
        if (root == rules_.names.end()) {
            fail("root", "there is none, and an answer begins with it");
        }
        rules_.root = static_cast<std::uint32_t>(root - rules_.names.begin());
        return std::move(rules_);
    }

private:
    void add_rule(std::size_t index) {
        const std::vector<GrammarElement> & elements = parsed_.rules[index];
        bool at_start = true;
        for (std::size_t i = 0; i < elements.size();) {
            if (at_start) {
                rules_.alternatives[index].push_back(static_cast<std::uint32_t>(rules_.items.size()));
            }
            at_start = false;
            switch (elements[i].kind) {
                case GrammarElementKind::end:
                case GrammarElementKind::alternative:
                    rules_.items.push_back({GrammarItem::Kind::end, 0});
                    at_start = true;
                    ++i;
                    break;
                case GrammarElementKind::rule:
                    rules_.items.push_back({GrammarItem::Kind::rule, elements[i++].value});
                    break;
                case GrammarElementKind::character:
                case GrammarElementKind::not_character:
                case GrammarElementKind::any_character: i = add_characters(index, i); break;
                default: fail(written_name(parsed_.names[index]), "llama.cpp's parser made of it what is unknown here");
            }
        }
    }

    std::size_t add_characters(std::size_t index, std::size_t i) {
        const std::vector<GrammarElement> & elements = parsed_.rules[index];
        const GrammarElementKind kind = elements[i].kind;
        CharacterClass ranges;
        if (kind == GrammarElementKind::any_character) {
            ranges.push_back({0, last_character});
            ++i;
        } else {
            do {
                const std::uint32_t first = elements[i].value;
                const bool is_range = elements[i + 1].kind == GrammarElementKind::range_end;
                ranges.push_back({first, is_range ? elements[i + 1].value : first});
                i += is_range ? 2 : 1;
            } while (elements[i].kind == GrammarElementKind::further_character);
            ranges = joined(std::move(ranges));
        }
        if (kind == GrammarElementKind::not_character) {
            ranges = all_but(ranges);
        }
        if (ranges.empty()) {
            fail(written_name(parsed_.names[index]),
                 "no character is among those between its brackets; a range is written [a-z]");
        }
        rules_.items.push_back({GrammarItem::Kind::characters, class_index(std::move(ranges))});
        return i;
    }

    std::uint32_t class_index(CharacterClass ranges) {
        std::vector<std::uint32_t> key;
        for (const CharacterRange & range : ranges) {
            key.insert(key.end(), {range.first, range.last});
        }
        const auto [entry, is_new] = indices_.emplace(std::move(key), rules_.classes.size());
        if (is_new) {
            rules_.classes.push_back(std::move(ranges));
        }
        return entry->second;
    }

    upstream::ParsedGrammar & parsed_;
    GrammarRules rules_;
    std::map<std::vector<std::uint32_t>, std::uint32_t> indices_;
};

// The rules of which some alternative consists only of such rules, and of characters where those count.
std::vector<bool> derivable(const GrammarRules & rules, bool with_characters) {
    struct Alternative {
        std::uint32_t rule;
        std::size_t n_missing;
    };
    std::vector<bool> found(rules.alternatives.size());
    std::vector<Alternative> alternatives;
    std::vector<std::vector<std::size_t>> uses(rules.alternatives.size());
    std::vector<std::uint32_t> todo;
    const auto add = [&](std::uint32_t rule) {
        if (!found[rule]) {
            found[rule] = true;
            todo.push_back(rule);
        }
    };
    for (std::uint32_t rule = 0; rule < rules.alternatives.size(); ++rule) {
        for (std::uint32_t i : rules.alternatives[rule]) {
            std::size_t n_missing = 0;
            for (; rules.items[i].kind != GrammarItem::Kind::end; ++i) {
                if (rules.items[i].kind == GrammarItem::Kind::rule) {
                    uses[rules.items[i].value].push_back(alternatives.size());
                    ++n_missing;
                } else {
                    n_missing += with_characters ? 0 : 1;
                }
            }
            alternatives.push_back({rule, n_missing});
            if (n_missing == 0) {
                add(rule);
            }
        }
    }
    while (!todo.empty()) {
        const std::uint32_t rule = todo.back();
        todo.pop_back();
        for (const std::size_t use : uses[rule]) {
            if (--alternatives[use].n_missing == 0) {
                add(alternatives[use].rule);
            }
        }
    }
    return found;
}

// The rules that a rule may begin with.
std::vector<std::uint32_t> first_rules(const GrammarRules & rules, std::uint32_t rule,
                                       const std::vector<bool> & may_be_empty) {
    std::vector<std::uint32_t> firsts;
    for (std::uint32_t i : rules.alternatives[rule]) {
        for (; rules.items[i].kind == GrammarItem::Kind::rule; ++i) {
            firsts.push_back(rules.items[i].value);
            if (!may_be_empty[rules.items[i].value]) {
                break;
            }
        }
    }
    return firsts;
}

void check_left_recursion(const GrammarRules & rules) {
    struct Step {
        std::uint32_t rule;
        std::vector<std::uint32_t> firsts;
    };
    enum class Mark : char { unseen, begun, done };
    const std::vector<bool> may_be_empty = derivable(rules, false);
    std::vector<Mark> marks(rules.alternatives.size(), Mark::unseen);
    std::vector<Step> path;
    const auto enter = [&](std::uint32_t rule) {
        marks[rule] = Mark::begun;
        path.push_back({rule, first_rules(rules, rule, may_be_empty)});
    };
    for (std::uint32_t start = 0; start < marks.size(); ++start) {
        if (marks[start] == Mark::unseen) {
            enter(start);
        }
        while (!path.empty()) {
            if (path.back().firsts.empty()) {
                marks[path.back().rule] = Mark::done;
                path.pop_back();
                continue;
            }
            const std::uint32_t next = path.back().firsts.back();
            path.back().firsts.pop_back();
            if (marks[next] == Mark::begun) {
                fail(written_name(rules.names[next]),
                     "it may begin with itself (left recursion). Put what repeats behind what it follows");
            }
            if (marks[next] == Mark::unseen) {
                enter(next);
            }
        }
    }
}

}  // namespace

bool contains(const CharacterClass & ranges, std::uint32_t character) {
    const auto after = std::upper_bound(ranges.begin(), ranges.end(), character,
                                        [](std::uint32_t c, const CharacterRange & range) { return c < range.first; });
    return after != ranges.begin() && character <= std::prev(after)->last;
}

GrammarRules compile_grammar(const std::string & text) {
    check_grammar_text(text);
    upstream::ParsedGrammar parsed = upstream::parse_grammar(text);
    if (!parsed.fault.empty()) {
        throw grammar_error(text, parsed.position, parsed.fault);
    }
    GrammarRules rules = RulesBuilder(parsed).build();
    check_left_recursion(rules);
    if (!derivable(rules, true)[rules.root]) {
        fail("root", "no text completes it, for each way through it comes back to a rule that it is in");
    }
    return rules;
}

}  // namespace phiggml
