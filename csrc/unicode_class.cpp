#include "unicode_class.h"

#include <algorithm>
#include <iterator>

#include "unicode_class_table.h"

namespace phiggml {

std::uint8_t unicode_class(char32_t character) noexcept {
    const std::uint32_t key = (static_cast<std::uint32_t>(character) << 8) | 0xff;
    const auto * run = std::upper_bound(std::begin(unicode_class_table), std::end(unicode_class_table), key);
    return static_cast<std::uint8_t>(*(run - 1));
}

std::size_t character_length(std::string_view text, std::size_t at) noexcept {
    const auto lead = static_cast<std::uint8_t>(text[at]);
    const std::size_t length = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    return std::min(length, text.size() - at);
}

char32_t character_at(std::string_view text, std::size_t at) noexcept {
    const auto lead = static_cast<std::uint8_t>(text[at]);
    if (lead < 0x80) {
        return lead;
    }
    const std::size_t length = character_length(text, at);
    if (length == 1) {
        return 0xfffd;
    }
    char32_t character = lead & (0x7f >> length);
    for (std::size_t i = 1; i < length; ++i) {
        character = (character << 6) | (static_cast<std::uint8_t>(text[at + i]) & 0x3f);
    }
    return character;
}

char32_t character_before(std::string_view text, std::size_t end) noexcept {
    std::size_t at = end - 1;
    while (at > 0 && end - at < 4 && (static_cast<std::uint8_t>(text[at]) & 0xc0) == 0x80) {
        --at;
    }
    return character_at(text, at);
}

}  // namespace phiggml
