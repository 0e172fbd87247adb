// JSON schemas as grammars.
#pragma once

#include <string>

namespace phiggml {

// A grammar in GBNF whose texts are JSON that the schema allows. The schema must be one that phiggml/json_schema.py has
// checked and written in simple words. Throws Error of kind input with llama.cpp's reason.
std::string json_schema_to_gbnf(const std::string & schema);

}  // namespace phiggml
