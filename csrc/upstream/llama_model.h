// What llama_model.cpp adds to the llama library: where each tensor of a model lies, and how long its heads are.
#pragma once

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

}  // namespace phiggml::upstream
