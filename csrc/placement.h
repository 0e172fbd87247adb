// What a model and a session on it would take on each device, found out without reading a weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"
#include "session.h"

namespace phiggml {

struct DeviceBytes {
    std::string device;
    std::uint64_t weights = 0;
    std::uint64_t kv = 0;
    std::uint64_t compute = 0;
};

struct Placement {
    std::vector<upstream::TensorPlace> tensors;
    std::vector<DeviceBytes> devices;  // those to offload to, in their order; others that hold something; the CPU
};

// Of the weights alone, of a model that was loaded with these devices.
Placement placement_of(const Model & model, const std::vector<std::string> & devices);

// Loads the model and makes the session as they would be, but for memory: whatever they refuse is refused here. Of a
// model that no session runs on only the weights are counted. Backends must have been loaded.
Placement plan_placement(ModelSettings model, const SessionSettings & session);

}  // namespace phiggml
