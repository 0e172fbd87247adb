#include "llama_model.h"

#include "ggml-backend.h"
#include "llama-model.h"

namespace phiggml::upstream {

std::vector<std::pair<std::string, std::string>> tensor_devices(const llama_model & model) {
    std::vector<std::pair<std::string, std::string>> devices;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        std::string device;
        if (tensor->buffer != nullptr) {
            const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
            const ggml_backend_dev_t owner = ggml_backend_buft_get_device(type);
            device = owner != nullptr ? ggml_backend_dev_name(owner) : "CPU";
        }
        devices.emplace_back(name, device);
    }
    return devices;
}

HeadSizes head_sizes(const llama_model & model) {
    return {model.hparams.n_embd_head_k(), model.hparams.n_embd_head_v()};
}

}  // namespace phiggml::upstream
