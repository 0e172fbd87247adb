#include "adapter.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "error.h"
#include "llama.h"
#include "open_files.h"
#include "runtime.h"
#include "upstream/llama_model.h"

namespace phiggml {

namespace {

llama_adapter_lora * load(llama_model * model, const OpenFiles & files) {
    return files.stream() != nullptr ? llama_adapter_lora_init_from_file_ptr(model, files.stream())
                                     : llama_adapter_lora_init(model, files.names().front());
}

void check(const Model & model, const std::vector<ScaledLora> & loras) {
    std::size_t n_pairs = 0;
    for (std::size_t i = 0; i < loras.size(); ++i) {
        const ScaledLora & lora = loras[i];
        const auto end = loras.begin() + static_cast<std::ptrdiff_t>(i);
        if (&lora.adapter->model() != &model) {
            throw Error(ErrorKind::input,
                        "set_lora: adapter " + std::to_string(i) +
                            " was loaded for another Model than the session's. Load it for this one.");
        }
        if (std::any_of(loras.begin(), end, [&](const ScaledLora & other) { return other.adapter == lora.adapter; })) {
            throw Error(ErrorKind::input, "set_lora: adapter " + std::to_string(i) +
                                              " is given twice. Give it once, with the sum of its scales.");
        }
        if (!std::isfinite(lora.scale)) {
            throw Error(ErrorKind::input,
                        "set_lora: the scale of adapter " + std::to_string(i) + " is not finite. Pass a number.");
        }
        n_pairs += lora.adapter->n_pairs();
    }
    if (n_pairs > upstream::most_adapted_tensors(*model.handle())) {
        throw Error(ErrorKind::unsupported, "set_lora: llama.cpp's graph of this architecture has no room for " +
                                                std::to_string(n_pairs) + " adapted tensors. Set fewer adapters.");
    }
}

// In a control vector for the model.
std::size_t n_numbers(const Model & model) {
    return static_cast<std::size_t>(model.n_embd()) * static_cast<std::size_t>(std::max(model.n_layer() - 1, 0));
}

}  // namespace

void LoraAdapter::Free::operator()(llama_adapter_lora * adapter) const {
    const std::unique_lock<std::shared_mutex> lock(model->adapters_mutex());
    llama_adapter_lora_free(adapter);
}

LoraAdapter::LoraAdapter(std::shared_ptr<const Model> model, const std::shared_ptr<GgufFile> & file,
                         std::size_t n_pairs)
    : model_(std::move(model)), n_pairs_(n_pairs), adapter_(nullptr, Free{model_.get()}) {
    const OpenFiles files({file});
    const LogMark mark([&](std::string text) { return files.with_paths(std::move(text)); });
    {
        const std::unique_lock<std::shared_mutex> lock(model_->adapters_mutex());
        adapter_.reset(load(model_->handle(), files));
    }
    if (!adapter_) {
        const std::string path = file->source().name();
        const std::string complaint = mark.first_error();
        if (complaint.find("failed to allocate") != std::string::npos) {
            throw Error(ErrorKind::device, "lora: " + path + ": the device has no room for it. Close what it holds.");
        }
        throw Error::format("lora: llama.cpp refuses this adapter: " + complaint + " Convert it anew.").with_path(path);
    }
}

void apply_loras(llama_context * context, const Model & model, const std::vector<ScaledLora> & loras) {
    check(model, loras);
    std::vector<llama_adapter_lora *> handles;
    std::vector<float> scales;
    for (const ScaledLora & lora : loras) {
        handles.push_back(lora.adapter->handle());
        scales.push_back(lora.scale);
    }
    if (context != nullptr) {
        llama_set_adapters_lora(context, handles.data(), handles.size(), scales.data());
    }
}

void check_control_vector(const Model & model, const ControlVector & vector) {
    const std::size_t n_wanted = n_numbers(model);
    if (!vector.rows.empty() &&
        (vector.rows.size() != n_wanted ||
         !std::all_of(vector.rows.begin(), vector.rows.end(), [](float x) { return std::isfinite(x); }))) {
        throw Error(ErrorKind::input, "set_control_vector: it has " + std::to_string(vector.rows.size()) +
                                          " numbers: there must be " + std::to_string(n_wanted) + ", all finite.");
    }
}

void apply_control_vector(llama_context * context, const Model & model, const ControlVector & vector) {
    if (vector.rows.empty()) {
        llama_set_adapter_cvec(context, nullptr, 0, 0, -1, -1);
        return;
    }
    // All rows each time: upstream leaves those that are not given as they were.
    if (llama_set_adapter_cvec(context, vector.rows.data(), vector.rows.size(), model.n_embd(), 1,
                               model.n_layer() - 1) != 0) {
        throw Error(ErrorKind::device, "set_control_vector: the devices have no room for it. Close what they hold.");
    }
}

}  // namespace phiggml
