// Stands in the place of upstream's llama-quant.cpp in the llama library. The planner that upstream exports,
// llama_quant_compute_types, takes has_imatrix for false and sees only tensors that may be quantized, which
// falsifies the rule for tied embeddings; ours asks the same rules as llama_model_quantize does.
#include "llama_quant.h"

#include <memory>
#include <new>

#include "llama-quant.cpp"

namespace phiggml::upstream {

namespace {

struct ModelDeleter {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

using ModelPointer = std::unique_ptr<llama_model, ModelDeleter>;

// Upstream asserts what is checked here.
std::string model_fault(const ModelShape & shape, const TypeRules & rules) {
    const llm_arch arch = llm_arch_from_string(shape.architecture);
    if (arch == LLM_ARCH_UNKNOWN || arch == LLM_ARCH_CLIP) {
        return "no rules are known for architecture '" + shape.architecture + "'";
    }
    if (shape.n_layer < 1 || shape.n_layer > LLAMA_MAX_LAYERS) {
        return "the model has " + std::to_string(shape.n_layer) + " layers, and 1 to " +
               std::to_string(LLAMA_MAX_LAYERS) + " are possible";
    }
    if (llama_ftype_get_default_type(static_cast<llama_ftype>(rules.file_type)) == GGML_TYPE_COUNT) {
        return "file type " + std::to_string(rules.file_type) + " is no type that a model can be quantized to";
    }
    return {};
}

// Which size of a family a model is; the rules know this one alone. llama_quant_model_from_metadata looks for it in
// one architecture, the loaders of others (src/models) find it as well.
bool is_70b(llm_arch arch, const ModelShape & shape) {
    switch (arch) {
        case LLM_ARCH_LLAMA:
        case LLM_ARCH_LLAMA_EMBED: return shape.n_expert != 8 && shape.n_layer == 80 && shape.n_head != shape.n_head_kv;
        case LLM_ARCH_QWEN2:
        case LLM_ARCH_DECI:
        case LLM_ARCH_OLMO: return shape.n_layer == 80;
        case LLM_ARCH_JAIS2: return shape.n_layer == 68;
        default: return false;
    }
}

ModelPointer stand_in_model(const ModelShape & shape) {
    const uint32_t n_embd_head = shape.n_head > 0 ? shape.n_embd / shape.n_head : 0;
    const llama_quant_model_desc description = {
        shape.architecture.c_str(),
        shape.n_embd,
        shape.n_ff,
        shape.n_layer,
        shape.n_head,
        shape.n_head_kv,
        shape.n_expert,
        n_embd_head,
        n_embd_head,
    };
    ModelPointer model(llama_quant_model_from_metadata(&description));
    model->type = is_70b(model->arch, shape) ? LLM_TYPE_70B : LLM_TYPE_UNKNOWN;
    return model;
}

llama_model_quantize_params make_params(const TypeRules & rules) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = static_cast<llama_ftype>(rules.file_type);
    params.pure = rules.pure;
    params.quantize_output_tensor = rules.quantize_output;
    if (rules.output_type != no_type) {
        params.output_tensor_type = static_cast<ggml_type>(rules.output_type);
    }
    return params;
}

ggml_tensor make_tensor(const TensorFacts & facts) {
    ggml_tensor tensor = {};
    tensor.type = static_cast<ggml_type>(facts.type);
    std::copy(facts.ne.begin(), facts.ne.end(), tensor.ne);
    ggml_set_name(&tensor, facts.name.c_str());
    return tensor;
}

// Asks the rules, which count the tensors that they have seen, so the order of calls matters.
void choose_by_rules(quantize_state_impl & state, const ggml_tensor & tensor, const tensor_metadata & metadata,
                     TensorChoice & choice) {
    const llama_model_quantize_params & params = *state.params;
    const ggml_type default_type = llama_ftype_get_default_type(params.ftype);
    choice.type = llama_tensor_get_type(state, &params, &tensor, default_type, metadata);
}

TensorChoice choose_type(quantize_state_impl & state, const TensorFacts & facts, const tensor_metadata & metadata) {
    const ggml_tensor tensor = make_tensor(facts);
    TensorChoice choice;
    choice.type = facts.type;
    choice.allowed = tensor_allows_quantization(state.params, state.model.arch, &tensor);
    if (!choice.allowed) {
        return choice;
    }
    if (facts.override_type != no_type) {
        choice.type = facts.override_type;
    } else {
        try {
            choose_by_rules(state, tensor, metadata, choice);
        } catch (const std::runtime_error & error) {
            choice.fault = error.what();
            return choice;
        }
    }
    const auto type = static_cast<ggml_type>(choice.type);
    choice.requires_imatrix =
        tensor_requires_imatrix(tensor.name, type, state.params->ftype) || ggml_quantize_requires_imatrix(type);
    return choice;
}

}  // namespace

TypeChoices choose_types(const ModelShape & model, const TypeRules & rules, const std::vector<TensorFacts> & tensors) {
    TypeChoices choices;
    choices.fault = model_fault(model, rules);
    if (!choices.fault.empty()) {
        return choices;
    }
    std::vector<size_t> order(tensors.size());
    for (size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
    }
    if (!rules.in_order) {
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
            return llama_model_loader::weight_name_comparer()(tensors[a].name, tensors[b].name);
        });
    }
    try {
        const ModelPointer stand_in = stand_in_model(model);
        const llama_model_quantize_params params = make_params(rules);
        quantize_state_impl state(*stand_in, &params);
        state.has_imatrix = rules.has_imatrix;
        std::vector<tensor_metadata> metadata(order.size());
        for (size_t i = 0; i < order.size(); ++i) {
            metadata[i].name = tensors[order[i]].name;
        }
        init_quantize_state_counters(state, metadata);
        for (size_t i = 0; i < order.size(); ++i) {
            choices.tensors.push_back(choose_type(state, tensors[order[i]], metadata[i]));
            choices.tensors.back().index = order[i];
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & error) {
        choices.tensors.clear();
        choices.fault = error.what();
    }
    return choices;
}

}  // namespace phiggml::upstream
