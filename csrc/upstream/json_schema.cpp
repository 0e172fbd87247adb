// Stands in the place of upstream's json-schema-to-grammar.cpp, which says on stderr what it leaves out and goes on.
#include "json_schema.h"

#include <cstdio>
#include <functional>
#include <stdexcept>

#include "common.h"

namespace {

template <typename... Arguments>
[[noreturn]] void refuse(std::FILE * /*unused*/, const char * /*unused*/, const Arguments &... arguments) {
    throw std::invalid_argument((std::string() + ... + (" " + std::string(arguments))).substr(1));
}

}  // namespace

#define fprintf refuse
#include "json-schema-to-grammar.cpp"
#undef fprintf

// Of upstream's common.cpp, which brings much else, three functions on text are needed.
std::string string_repeat(const std::string & str, std::size_t n) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i) {
        text += str;
    }
    return text;
}

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string text;
    for (std::size_t i = 0; i < values.size(); ++i) {
        text += (i > 0 ? separator : "") + values[i];
    }
    return text;
}

std::vector<std::string> string_split(const std::string & str, const std::string & delimiter) {
    std::vector<std::string> parts;
    std::size_t begin = 0;
    for (std::size_t end = str.find(delimiter); end != std::string::npos; end = str.find(delimiter, begin)) {
        parts.push_back(str.substr(begin, end - begin));
        begin = end + delimiter.size();
    }
    parts.push_back(str.substr(begin));
    return parts;
}

namespace phiggml::upstream {

namespace {

// Half of a surrogate pair is no character, and a whole pair is one where upstream counts two; an exponent of sixteen
// digits is no number that a program can hold.
bool amend_rules() {
    PRIMITIVE_RULES.at("char").content =
        R"([^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" ([0-9a-cefA-CEF] [0-9a-fA-F] | [dD] [0-7]) [0-9a-fA-F]{2}))";
    PRIMITIVE_RULES.at("number").content = R"(("-"? integral-part) ("." decimal-part)? ([eE] [-+]? [0-9]{1,2})?)";
    return true;
}

}  // namespace

std::string convert_json_schema(const std::string & schema) {
    static const bool amended = amend_rules();
    static_cast<void>(amended);
    return json_schema_to_grammar(common_json::parse(schema), true);
}

}  // namespace phiggml::upstream
