#include "repetition.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

namespace phiggml {

namespace {

// What is not finite stays for the look at all logits to find.
void lower(float & logit, float by) {
    if (std::isfinite(logit)) {
        logit = std::clamp(logit - by, -FLT_MAX, FLT_MAX);
    }
}

// Whether one of the parts ends in the text behind its first n_before bytes.
bool ends_behind(const std::string & text, std::size_t n_before, const std::vector<std::string> & parts) {
    return std::any_of(parts.begin(), parts.end(), [&](const std::string & part) {
        const std::size_t first = n_before + 1 > part.size() ? n_before + 1 - part.size() : 0;
        return text.find(part, first) != std::string::npos;
    });
}

}  // namespace

Penalties::Penalties(const PenaltySettings & settings, std::int32_t n_vocab)
    : settings_(settings),
      recent_(static_cast<std::size_t>(settings.last_n)),
      counts_(static_cast<std::size_t>(n_vocab)),
      places_(static_cast<std::size_t>(n_vocab)) {}

void Penalties::accept(std::int32_t token) {
    if (recent_.full()) {
        const auto old = static_cast<std::size_t>(recent_.oldest());
        if (--counts_[old] == 0) {
            const std::int32_t last = present_.back();
            present_[static_cast<std::size_t>(places_[old])] = last;
            places_[static_cast<std::size_t>(last)] = places_[old];
            present_.pop_back();
        }
    }
    recent_.push(token);
    const auto added = static_cast<std::size_t>(token);
    if (counts_[added]++ == 0) {
        places_[added] = static_cast<std::int32_t>(present_.size());
        present_.push_back(token);
    }
}

void Penalties::apply(float * logits) const {
    for (const std::int32_t token : present_) {
        float & logit = logits[token];
        // Keskar et al. (arXiv 1909.05858) only divide, which would make a negative one likelier.
        const float scaled = logit <= 0 ? logit * settings_.repeat : logit / settings_.repeat;
        if (std::isfinite(logit)) {
            logit = std::clamp(scaled, -FLT_MAX, FLT_MAX);
        }
        const auto count = static_cast<float>(counts_[static_cast<std::size_t>(token)]);
        lower(logit, count * settings_.frequency + settings_.presence);
    }
}

Dry::Dry(DrySettings settings, std::shared_ptr<const Model> model)
    : settings_(std::move(settings)),
      model_(std::move(model)),
      recent_(static_cast<std::size_t>(settings_.last_n)),
      repeated_(static_cast<std::size_t>(model_->n_vocab())) {
    for (const std::string & breaker : settings_.breakers) {
        longest_breaker_ = std::max(longest_breaker_, breaker.size());
    }
}

void Dry::accept(std::int32_t token) {
    Entry entry{token, false, false};
    if (longest_breaker_ > 0) {
        const std::string piece = model_->piece(token, true);
        entry.holds_breaker = ends_behind(piece, 0, settings_.breakers);
        const std::size_t n_before = tail_.size();
        tail_ += piece;
        entry.ends_breaker = ends_behind(tail_, n_before, settings_.breakers);
        tail_.erase(0, tail_.size() - std::min(tail_.size(), longest_breaker_ - 1));
    }
    recent_.push(entry);
}

// So many of the last tokens have no breaker in them.
std::size_t Dry::unbroken() const {
    std::size_t n = 0;
    while (n < recent_.size() && !recent_.back(n).ends_breaker) {
        ++n;
    }
    return n;
}

// The Z function of the text read backwards: how far what ends k tokens before the end is the same as the end.
void Dry::measure() {
    const std::size_t n = recent_.size();
    lengths_.assign(n, 0);
    std::size_t left = 0, right = 0;
    for (std::size_t k = 1; k < n; ++k) {
        std::size_t length = k < right ? std::min(right - k, lengths_[k - left]) : 0;
        while (k + length < n && recent_.back(length).token == recent_.back(k + length).token) {
            ++length;
        }
        lengths_[k] = length;
        if (k + length > right) {
            left = k;
            right = k + length;
        }
    }
}

float Dry::penalty(std::int32_t length) const {
    const double power = std::pow(static_cast<double>(settings_.base), length - settings_.allowed_length);
    return static_cast<float>(std::min(settings_.multiplier * power, static_cast<double>(FLT_MAX)));
}

void Dry::apply(float * logits) {
    const auto allowed = static_cast<std::size_t>(settings_.allowed_length);
    const std::size_t most = unbroken();
    if (most < allowed) {
        return;
    }
    measure();
    for (std::size_t k = 1; k < lengths_.size(); ++k) {
        const std::size_t length = std::min(lengths_[k], most);
        const Entry & next = recent_.back(k - 1);
        if (length < allowed || next.holds_breaker) {
            continue;
        }
        std::int32_t & longest = repeated_[static_cast<std::size_t>(next.token)];
        if (longest == 0) {
            touched_.push_back(next.token);
        }
        longest = std::max(longest, static_cast<std::int32_t>(length));
    }
    for (const std::int32_t token : touched_) {
        std::int32_t & length = repeated_[static_cast<std::size_t>(token)];
        lower(logits[token], penalty(length));
        length = 0;
    }
    touched_.clear();
}

}  // namespace phiggml
