#include "json_schema.h"

#include <algorithm>
#include <new>
#include <stdexcept>

#include "error.h"
#include "threads.h"
#include "upstream/json_schema.h"

namespace phiggml {

namespace {

constexpr std::size_t most_bytes = 1 << 20;
constexpr std::size_t most_nesting = 512;

// Upstream recurses into what is nested, and std::regex for each character of a name that no rule may have.
constexpr std::size_t stack_bytes = 8 << 20;

std::size_t nesting(const std::string & schema) {
    std::size_t depth = 0, greatest = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < schema.size(); ++i) {
        const char c = schema[i];
        if (in_string && c == '\\') {
            ++i;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string && (c == '{' || c == '[')) {
            greatest = std::max(greatest, ++depth);
        } else if (!in_string && (c == '}' || c == ']')) {
            depth -= depth > 0 ? 1 : 0;
        }
    }
    return greatest;
}

}  // namespace

std::string json_schema_to_gbnf(const std::string & schema) {
    if (schema.size() > most_bytes || nesting(schema) > most_nesting) {
        throw Error(ErrorKind::input,
                    "json_schema: it has more than 2^20 bytes, or is nested deeper than 512. Make it smaller.");
    }
    std::string grammar;
    try {
        run_on_stack(stack_bytes, [&] { grammar = upstream::convert_json_schema(schema); });
        return grammar;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & failure) {
        throw Error(ErrorKind::input,
                    std::string("json_schema: llama.cpp refuses it: ") + failure.what() + ". Correct the schema.");
    }
}

}  // namespace phiggml
