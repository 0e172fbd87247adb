// What class a character belongs to, in the words of the expressions by which tokenizers split text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace phiggml {

// Bits; a character may have none.
constexpr std::uint8_t class_upper = 1;         // \p{Lu} and \p{Lt}
constexpr std::uint8_t class_lower = 2;         // \p{Ll}
constexpr std::uint8_t class_other_letter = 4;  // \p{Lm} and \p{Lo}
constexpr std::uint8_t class_mark = 8;          // \p{M}
constexpr std::uint8_t class_number = 16;       // \p{N}
constexpr std::uint8_t class_space = 32;        // \s
constexpr std::uint8_t class_word = 64;         // \w
constexpr std::uint8_t class_letter = class_upper | class_lower | class_other_letter;

std::uint8_t unicode_class(char32_t character) noexcept;

// How many bytes of UTF-8 the character at `at` has, at least 1, and never beyond the end of the text.
std::size_t character_length(std::string_view text, std::size_t at) noexcept;

// The character at `at`; U+FFFD where the bytes are none.
char32_t character_at(std::string_view text, std::size_t at) noexcept;

// The character that ends before `end`, which is above 0.
char32_t character_before(std::string_view text, std::size_t end) noexcept;

}  // namespace phiggml
