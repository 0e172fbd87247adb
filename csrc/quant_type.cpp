#include "quant_type.h"

#include <algorithm>
#include <cctype>

#include "ggml.h"

namespace phiggml {

bool type_exists(int id) {
    return id >= 0 && id < GGML_TYPE_COUNT && ggml_blck_size(static_cast<ggml_type>(id)) > 0;
}

std::string type_name(int id) {
    std::string name = ggml_type_name(static_cast<ggml_type>(id));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
    return name;
}

std::int64_t block_size(int id) {
    return ggml_blck_size(static_cast<ggml_type>(id));
}

std::size_t block_bytes(int id) {
    return ggml_type_size(static_cast<ggml_type>(id));
}

bool quantizable(int id) {
    // Q8_1 and Q8_K hold activations inside products; no file or function takes them as a target.
    if (id == GGML_TYPE_Q8_1 || id == GGML_TYPE_Q8_K) {
        return false;
    }
    return id == GGML_TYPE_F32 || id == GGML_TYPE_F16 || id == GGML_TYPE_BF16 ||
           ggml_is_quantized(static_cast<ggml_type>(id));
}

bool dequantizable(int id) {
    return id == GGML_TYPE_F32 || (quantizable(id) && ggml_get_type_traits(static_cast<ggml_type>(id))->to_float);
}

std::vector<QuantTypeInfo> all_types() {
    std::vector<QuantTypeInfo> types;
    for (int id = 0; id < GGML_TYPE_COUNT; ++id) {
        if (type_exists(id)) {
            types.push_back({id, type_name(id), block_size(id), block_bytes(id),
                             ggml_quantize_requires_imatrix(static_cast<ggml_type>(id)), quantizable(id),
                             dequantizable(id)});
        }
    }
    return types;
}

}  // namespace phiggml
