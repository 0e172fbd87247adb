// What llama_model.cpp adds to the llama library: where each tensor of a model lies, how long its heads are, and what
// upstream's graph of it leaves out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "export.h"

struct llama_model;

namespace phiggml::upstream {

// Each tensor and the device that holds it: ("blk.0.attn_qkv.weight", "CPU").
PHIGGML_UPSTREAM_API std::vector<std::pair<std::string, std::string>> tensor_devices(const llama_model & model);

struct HeadSizes {
    std::int64_t key;
    std::int64_t value;
};

// Of the first layer.
PHIGGML_UPSTREAM_API HeadSizes head_sizes(const llama_model & model);

// How many tensors the adapters of one context may change together, which upstream's graphs of some architectures have
// no room of their own for.
PHIGGML_UPSTREAM_API std::size_t most_adapted_tensors(const llama_model & model);

// Whether each token attends to those before it alone.
PHIGGML_UPSTREAM_API bool is_causal(const llama_model & model);

// Whether the file says how a text's vector is made of its tokens'.
PHIGGML_UPSTREAM_API bool has_pooling_type(const llama_model & model);

// How many positions a learned table of them has; beyond it upstream ends the process. INT64_MAX where there is none.
PHIGGML_UPSTREAM_API std::int64_t most_positions(const llama_model & model);

// Whether upstream's graph adds control vectors.
PHIGGML_UPSTREAM_API bool adds_control_vectors(const llama_model & model);

}  // namespace phiggml::upstream
