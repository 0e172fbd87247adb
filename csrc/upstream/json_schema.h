// llama.cpp's converter of JSON schemas, of which json_schema.cpp makes a part of _core (cmake/JsonSchema.cmake).
#pragma once

#include <string>

namespace phiggml::upstream {

// The grammar in GBNF. Throws std::exception with the reason, also where upstream would go on with a schema that it
// takes in part. Recurses as deep as the schema is nested.
std::string convert_json_schema(const std::string & schema);

}  // namespace phiggml::upstream
