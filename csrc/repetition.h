// What lowers the logits of tokens that a text has had: the penalties, and DRY.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model.h"

namespace phiggml {

// The last tokens of a text.
template <typename Entry>
class RecentEntries {
public:
    explicit RecentEntries(std::size_t capacity) : capacity_(capacity) {}

    bool full() const { return entries_.size() == capacity_; }
    std::size_t size() const { return entries_.size(); }
    const Entry & oldest() const { return entries_[full() ? next_ : 0]; }

    // How many came after it: 0 is the newest.
    const Entry & back(std::size_t n_after) const {
        const std::size_t n = entries_.size(), place = next_ + n - 1 - n_after;
        return entries_[place < n ? place : place - n];
    }

    // The oldest gives way where it is full.
    void push(const Entry & entry) {
        if (full()) {
            entries_[next_] = entry;
        } else {
            entries_.push_back(entry);
        }
        next_ = (next_ + 1) % capacity_;
    }

private:
    std::size_t capacity_;
    std::size_t next_ = 0;
    std::vector<Entry> entries_;
};

struct PenaltySettings {
    float repeat;
    float frequency;
    float presence;
    std::int32_t last_n;
};

class Penalties {
public:
    Penalties(const PenaltySettings & settings, std::int32_t n_vocab);

    void accept(std::int32_t token);
    void apply(float * logits) const;

private:
    PenaltySettings settings_;
    RecentEntries<std::int32_t> recent_;
    std::vector<std::int32_t> counts_;   // of each token among the recent
    std::vector<std::int32_t> present_;  // those tokens, once each
    std::vector<std::int32_t> places_;   // of each of them in present_
};

struct DrySettings {
    float multiplier;
    float base;
    std::int32_t allowed_length;
    std::int32_t last_n;
    std::vector<std::string> breakers;
};

// "Don't repeat yourself": lowers what would make a repetition longer, the more the longer it is. A text that breaks
// sequences also breaks repetitions, wherever tokens begin and end in it.
class Dry {
public:
    Dry(DrySettings settings, std::shared_ptr<const Model> model);

    void accept(std::int32_t token);
    void apply(float * logits);

private:
    struct Entry {
        std::int32_t token;
        bool ends_breaker;   // alone, or with the tokens before it
        bool holds_breaker;  // alone
    };

    std::size_t unbroken() const;
    void measure();
    float penalty(std::int32_t length) const;

    DrySettings settings_;
    std::shared_ptr<const Model> model_;
    RecentEntries<Entry> recent_;
    std::size_t longest_breaker_ = 0;
    std::string tail_;                    // of the text, as much as a breaker may have before its last token
    std::vector<std::size_t> lengths_;    // of what the text ends in, so many tokens before its end
    std::vector<std::int32_t> repeated_;  // for each token, the longest repetition that it would go on with, or 0
    std::vector<std::int32_t> touched_;   // the tokens that have one
};

}  // namespace phiggml
