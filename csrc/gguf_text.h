// Names in a GGUF file: whether they are text, and how a message shows them.
#pragma once

#include <string>
#include <string_view>

namespace phiggml {

// RFC 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF.
bool is_utf8(std::string_view text);

// Short, in quotes, on one line.
std::string quoted(std::string_view name);

}  // namespace phiggml
