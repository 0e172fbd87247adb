// Facts about quant types, asked of ggml.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace phiggml {

struct QuantTypeInfo {
    int id;
    std::string name;  // as the GGUF community writes it: "Q4_K"
    std::int64_t block_size;
    std::size_t block_bytes;
    bool requires_imatrix;
    bool can_quantize;
    bool can_dequantize;
};

// Any id may be given.
bool type_exists(int id);
std::string type_name(int id);
std::int64_t block_size(int id);
std::size_t block_bytes(int id);
bool quantizable(int id);
bool dequantizable(int id);

// Every type that ggml has, tensors of integers included.
std::vector<QuantTypeInfo> all_types();

}  // namespace phiggml
