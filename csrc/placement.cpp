#include "placement.h"

#include <algorithm>
#include <memory>

#include "error.h"
#include "runtime.h"

namespace phiggml {

namespace {

constexpr const char * cpu = "CPU";

// What upstream notes of each cell of a cache, about 60 bytes, is there even where the cells are not.
void check_cells(const SessionSettings & s) {
    constexpr std::int64_t most_cells = 1 << 24;
    if (s.n_ctx > most_cells || s.n_seq_max > most_cells || s.n_ctx * s.n_seq_max > most_cells) {
        throw Error(ErrorKind::input, "plan: n_ctx * n_seq_max is more than 2^24 tokens. Choose a smaller n_ctx.");
    }
}

DeviceBytes & sum_of(std::vector<DeviceBytes> & sums, const std::string & device) {
    const auto is_it = [&](const DeviceBytes & sum) { return sum.device == device; };
    const auto found = std::find_if(sums.begin(), sums.end(), is_it);
    return found != sums.end() ? *found : sums.emplace_back(DeviceBytes{device});
}

}  // namespace

Placement placement_of(const Model & model, const std::vector<std::string> & devices) {
    Placement placement;
    placement.tensors = model.placement();
    for (const std::string & device : devices) {
        sum_of(placement.devices, device);
    }
    for (const upstream::TensorPlace & tensor : placement.tensors) {
        sum_of(placement.devices, tensor.device).weights += tensor.n_bytes;
    }
    const auto is_other = [](const DeviceBytes & sum) { return sum.device != cpu; };
    sum_of(placement.devices, cpu);
    std::stable_partition(placement.devices.begin(), placement.devices.end(), is_other);
    return placement;
}

Placement plan_placement(ModelSettings model_settings, const SessionSettings & session_settings) {
    check_cells(session_settings);
    model_settings.no_alloc = true;
    Progress progress;
    const LogMark mark(nullptr, [] { return true; });
    const auto model = std::make_shared<const Model>(model_settings, progress);
    Placement plan = placement_of(*model, model_settings.devices);
    if (model->has_decoder() && !model->looks_ahead()) {
        const Session session(model, session_settings);
        for (const upstream::ContextBytes & bytes : upstream::context_bytes(session.context())) {
            DeviceBytes & sum = sum_of(plan.devices, bytes.device);
            sum.kv += bytes.kv;
            sum.compute += bytes.compute;
        }
    }
    return plan;
}

}  // namespace phiggml
