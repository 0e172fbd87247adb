// Text from the bytes of tokens: whole characters only, and nothing of a stop text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phiggml {

// Makes characters of bytes, wherever they are cut. What is no UTF-8 becomes U+FFFD, one for each maximal part of a
// character (the Unicode Standard, section 3.9), as Python has it.
class CharacterStream {
public:
    // Appends to `text` what is certain by now.
    void add(std::string_view bytes, std::string & text);
    // The end has come: a character that is not whole is replaced.
    void end(std::string & text);

private:
    void begin(unsigned char byte, std::string & text);

    std::string part_;  // of a character, its first bytes
    int n_missing_ = 0;
    unsigned char lowest_ = 0x80, highest_ = 0xBF;  // of its next byte
};

// Looks for several texts at once, byte by byte: Aho and Corasick, Communications of the ACM 18(6), 1975.
class StopTexts {
public:
    using State = std::uint32_t;  // 0 at the start

    // Throws Error of kind input where one is empty, or all together are beyond reason.
    explicit StopTexts(std::vector<std::string> texts);

    State next(State state, unsigned char byte) const;
    // So many of the last bytes may be the beginning of a stop text.
    std::size_t begun(State state) const { return nodes_[state].depth; }
    // The bytes of the longest stop text that ends here, or 0.
    std::size_t ended(State state) const { return nodes_[state].ended; }

private:
    struct Node {
        State first_child = 0;
        std::uint32_t n_children = 0;  // one after the other
        State shorter = 0;             // what the longest proper end of its bytes leads to
        std::uint32_t depth = 0;
        std::uint32_t ended = 0;
        unsigned char byte = 0;
    };

    void add_child(State node, unsigned char byte);
    State child(State node, unsigned char byte) const;

    std::vector<Node> nodes_;
};

// The first stop text that is found ends the text; of those that come with the same bytes, the one that begins first.
// What may be the beginning of one is held back. `strip_space`: a space before everything is no part of the text.
class TextStream {
public:
    // The stop texts are UTF-8. Throws Error of kind input, as StopTexts.
    TextStream(std::vector<std::string> stops, bool strip_space);

    // Takes the bytes of a token and gives the text that is certain by now.
    std::string add(std::string_view bytes);
    // The end has come: gives what was held back.
    std::string rest();
    // A stop text has come; what follows is dropped.
    bool stopped() const { return stopped_; }

private:
    std::string certain(std::string text);

    CharacterStream characters_;
    StopTexts stops_;
    StopTexts::State state_ = 0;
    std::string held_;
    bool strip_space_;
    bool stopped_ = false;
};

}  // namespace phiggml
