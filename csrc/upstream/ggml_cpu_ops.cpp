// Stands in the place of upstream's ops.cpp in every variant of the CPU backend. Upstream adds up half-precision
// values in half precision when few queries are asked, which costs 1e-2 of the logits at 4,000 tokens; ours answers
// those, upstream's the rest.
#include "ggml_cpu_flash_attention.h"
#include "ops.h"

static void upstream_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst);

#define ggml_compute_forward_flash_attn_ext upstream_flash_attn_ext
#include "ops.cpp"
#undef ggml_compute_forward_flash_attn_ext

void ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    if (!phiggml::upstream::flash_attention(params, dst)) {
        upstream_flash_attn_ext(params, dst);
    }
}
