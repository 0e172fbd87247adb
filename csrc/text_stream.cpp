#include "text_stream.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace phiggml {

namespace {

constexpr std::size_t most_stop_bytes = std::size_t{1} << 24;
constexpr std::string_view replacement = "\xEF\xBF\xBD";

void require_usable(const std::vector<std::string> & stops) {
    std::size_t n_bytes = 0;
    for (const std::string & stop : stops) {
        if (stop.empty()) {
            throw Error(ErrorKind::input, "stop: one of the texts is empty. Leave it out.");
        }
        n_bytes += stop.size();
    }
    if (n_bytes > most_stop_bytes) {
        throw Error(ErrorKind::input, "stop: the texts have " + std::to_string(n_bytes) + " bytes together: " +
                                          std::to_string(most_stop_bytes) + " is the most. Pass shorter ones.");
    }
}

}  // namespace

void CharacterStream::add(std::string_view bytes, std::string & text) {
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        if (n_missing_ > 0 && (byte < lowest_ || byte > highest_)) {
            end(text);
        }
        if (n_missing_ == 0) {
            begin(byte, text);
            continue;
        }
        part_ += c;
        lowest_ = 0x80;
        highest_ = 0xBF;
        if (--n_missing_ == 0) {
            text += part_;
        }
    }
}

void CharacterStream::begin(unsigned char byte, std::string & text) {
    if (byte < 0x80) {
        text += static_cast<char>(byte);
    } else if (byte < 0xC2 || byte > 0xF4) {
        text += replacement;
    } else {
        part_.assign(1, static_cast<char>(byte));
        n_missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
        // Nothing longer than it need be, no surrogates, nothing above U+10FFFF.
        lowest_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
        highest_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    }
}

void CharacterStream::end(std::string & text) {
    if (n_missing_ > 0) {
        text += replacement;
        n_missing_ = 0;
    }
}

StopTexts::StopTexts(std::vector<std::string> texts) : nodes_(1) {
    require_usable(texts);
    std::sort(texts.begin(), texts.end());
    struct Range {
        std::size_t first, last;
    };
    std::vector<Range> ranges{{0, texts.size()}};  // of each node, the texts that begin with its bytes
    // Breadth first: what a node leads to when it goes on shorter is nearer to the start.
    for (State node = 0; node < nodes_.size(); ++node) {
        const std::size_t depth = nodes_[node].depth;
        Range range = ranges[node];
        nodes_[node].ended = nodes_[nodes_[node].shorter].ended;
        for (; range.first < range.last && texts[range.first].size() == depth; ++range.first) {
            nodes_[node].ended = nodes_[node].depth;
        }
        while (range.first < range.last) {
            const char byte = texts[range.first][depth];
            Range same{range.first, range.first};
            while (same.last < range.last && texts[same.last][depth] == byte) {
                ++same.last;
            }
            add_child(node, static_cast<unsigned char>(byte));
            ranges.push_back(same);
            range.first = same.last;
        }
    }
}

void StopTexts::add_child(State node, unsigned char byte) {
    Node added;
    added.shorter = node == 0 ? 0 : next(nodes_[node].shorter, byte);
    added.depth = nodes_[node].depth + 1;
    added.byte = byte;
    if (nodes_[node].n_children++ == 0) {
        nodes_[node].first_child = static_cast<State>(nodes_.size());
    }
    nodes_.push_back(added);
}

StopTexts::State StopTexts::child(State node, unsigned char byte) const {
    const State first = nodes_[node].first_child, last = first + nodes_[node].n_children;
    for (State at = first; at < last; ++at) {
        if (nodes_[at].byte == byte) {
            return at;
        }
    }
    return 0;
}

StopTexts::State StopTexts::next(State state, unsigned char byte) const {
    while (true) {
        const State found = child(state, byte);
        if (found != 0 || state == 0) {
            return found;
        }
        state = nodes_[state].shorter;
    }
}

TextStream::TextStream(std::vector<std::string> stops, bool strip_space)
    : stops_(std::move(stops)), strip_space_(strip_space) {}

std::string TextStream::add(std::string_view bytes) {
    std::string text;
    characters_.add(bytes, text);
    return certain(std::move(text));
}

std::string TextStream::rest() {
    std::string text;
    characters_.end(text);
    text = certain(std::move(text));
    text += held_;
    held_.clear();
    state_ = 0;
    return text;
}

std::string TextStream::certain(std::string text) {
    if (stopped_) {
        return {};
    }
    if (strip_space_ && !text.empty()) {
        strip_space_ = false;
        text.erase(0, text.front() == ' ' ? 1 : 0);
    }
    std::size_t first = std::string::npos;  // where a stop text begins
    std::size_t n = held_.size();
    for (const char c : text) {
        state_ = stops_.next(state_, static_cast<unsigned char>(c));
        ++n;
        if (stops_.ended(state_) > 0) {
            first = std::min(first, n - stops_.ended(state_));
        }
    }
    stopped_ = first != std::string::npos;
    held_ += text;
    text = held_.substr(0, stopped_ ? first : n - stops_.begun(state_));
    held_.erase(0, stopped_ ? n : text.size());
    return text;
}

}  // namespace phiggml
