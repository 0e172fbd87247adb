// What llama_model.cpp adds to the llama library: where each tensor of a model lies.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "export.h"

struct llama_model;

namespace phiggml::upstream {

// Each tensor and the device that holds it: ("blk.0.attn_qkv.weight", "CPU").
PHIGGML_UPSTREAM_API std::vector<std::pair<std::string, std::string>> tensor_devices(const llama_model & model);

}  // namespace phiggml::upstream
