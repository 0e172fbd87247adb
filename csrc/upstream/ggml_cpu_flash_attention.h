// Attention of few queries on the CPU, with float32 sums where upstream's are half precision.
#pragma once

struct ggml_compute_params;
struct ggml_tensor;

namespace phiggml::upstream {

// Computes GGML_OP_FLASH_ATTN_EXT on every thread of the pool, or answers false on every thread and has done nothing:
// what is not of these types, what upstream takes by tiles, and what the scratch memory does not hold.
bool flash_attention(const ggml_compute_params * params, ggml_tensor * dst);

}  // namespace phiggml::upstream
