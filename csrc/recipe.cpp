#include "recipe.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "error.h"
#include "ggml.h"
#include "llama.h"
#include "quant_type.h"

namespace phiggml {

namespace {

// llama-quantize's list, less its aliases and COPY.
#define PHIGGML_MOSTLY(name) {#name, LLAMA_FTYPE_MOSTLY_##name}
const std::vector<ModelType> known_model_types = {
    {"F32", LLAMA_FTYPE_ALL_F32}, PHIGGML_MOSTLY(F16),    PHIGGML_MOSTLY(BF16),    PHIGGML_MOSTLY(Q8_0),
    PHIGGML_MOSTLY(Q6_K),         PHIGGML_MOSTLY(Q5_K_M), PHIGGML_MOSTLY(Q5_K_S),  PHIGGML_MOSTLY(Q5_1),
    PHIGGML_MOSTLY(Q5_0),         PHIGGML_MOSTLY(Q4_K_M), PHIGGML_MOSTLY(Q4_K_S),  PHIGGML_MOSTLY(Q4_1),
    PHIGGML_MOSTLY(Q4_0),         PHIGGML_MOSTLY(IQ4_NL), PHIGGML_MOSTLY(IQ4_XS),  PHIGGML_MOSTLY(MXFP4_MOE),
    PHIGGML_MOSTLY(Q3_K_L),       PHIGGML_MOSTLY(Q3_K_M), PHIGGML_MOSTLY(Q3_K_S),  PHIGGML_MOSTLY(IQ3_M),
    PHIGGML_MOSTLY(IQ3_S),        PHIGGML_MOSTLY(IQ3_XS), PHIGGML_MOSTLY(IQ3_XXS), PHIGGML_MOSTLY(Q2_K),
    PHIGGML_MOSTLY(Q2_K_S),       PHIGGML_MOSTLY(IQ2_M),  PHIGGML_MOSTLY(IQ2_S),   PHIGGML_MOSTLY(IQ2_XS),
    PHIGGML_MOSTLY(IQ2_XXS),      PHIGGML_MOSTLY(IQ1_M),  PHIGGML_MOSTLY(IQ1_S),   PHIGGML_MOSTLY(Q2_0),
    PHIGGML_MOSTLY(Q1_0),         PHIGGML_MOSTLY(TQ2_0),  PHIGGML_MOSTLY(TQ1_0),
};
#undef PHIGGML_MOSTLY

using TypesByName = std::map<std::string, QuantTypeInfo>;

TypesByName types_by_name() {
    TypesByName types;
    for (const QuantTypeInfo & type : all_types()) {
        types.emplace(type.name, type);
    }
    return types;
}

const QuantTypeInfo & find_type(const TypesByName & types, const std::string & name) {
    const auto found = types.find(name);
    if (found == types.end()) {
        throw Error(ErrorKind::input, "recipe: '" + name + "': there is no such tensor type.");
    }
    return found->second;
}

int named_target(const TypesByName & types, const std::string & name) {
    if (name.empty()) {
        return upstream::no_type;
    }
    const QuantTypeInfo & type = find_type(types, name);
    if (!type.can_quantize) {
        throw Error(ErrorKind::input, "recipe: '" + name + "': no tensor can be converted to this type.");
    }
    return type.id;
}

// ggml's tensor: the row's length first, four axes.
std::array<std::int64_t, 4> checked_ne(const RecipeTensor & tensor) {
    if (tensor.shape.empty() || tensor.shape.size() > GGML_MAX_DIMS) {
        throw Error(ErrorKind::input, "recipe: " + tensor.name + ": a tensor has 1 to 4 axes, not " +
                                          std::to_string(tensor.shape.size()) + ".");
    }
    std::array<std::int64_t, 4> ne = {1, 1, 1, 1};
    std::reverse_copy(tensor.shape.begin(), tensor.shape.end(), ne.begin());
    // No type needs more than 8 bytes for a number, so sizes in bytes stay in range too.
    std::int64_t room = std::numeric_limits<std::int64_t>::max() / 8;
    for (const std::int64_t length : ne) {
        if (length < 1 || length > room) {
            throw Error(ErrorKind::input, "recipe: " + tensor.name + ": an axis of length " + std::to_string(length) +
                                              " is out of range.");
        }
        room /= length;
    }
    return ne;
}

void check_name(const std::string & name, std::set<std::string> & seen) {
    if (name.size() >= GGML_MAX_NAME || name.find('\0') != std::string::npos) {
        throw Error(ErrorKind::input, "recipe: " + name + ": a tensor's name has at most " +
                                          std::to_string(GGML_MAX_NAME - 1) + " bytes, none of them zero.");
    }
    if (!seen.insert(name).second) {
        throw Error(ErrorKind::input, "recipe: " + name + ": two tensors have this name.");
    }
}

std::vector<upstream::TensorFacts> tensor_facts(const TypesByName & types, const std::vector<RecipeTensor> & tensors) {
    std::vector<upstream::TensorFacts> facts;
    std::set<std::string> seen;
    for (const RecipeTensor & tensor : tensors) {
        check_name(tensor.name, seen);
        const QuantTypeInfo & type = find_type(types, tensor.type);
        const std::array<std::int64_t, 4> ne = checked_ne(tensor);
        if (ne[0] % type.block_size != 0) {
            throw Error(ErrorKind::input, "recipe: " + tensor.name + ": a row of " + std::to_string(ne[0]) +
                                              " numbers is no multiple of " + type.name + "'s block of " +
                                              std::to_string(type.block_size) + ".");
        }
        facts.push_back({tensor.name, ne, type.id, named_target(types, tensor.override_type)});
    }
    return facts;
}

std::uint64_t row_bytes(const QuantTypeInfo & type, std::int64_t n) {
    return static_cast<std::uint64_t>(n / type.block_size) * type.block_bytes;
}

std::string conversion_fault(const QuantTypeInfo & source, const QuantTypeInfo & target, std::int64_t n) {
    if (n % target.block_size != 0) {
        return "a row of " + std::to_string(n) + " numbers is no multiple of " + target.name + "'s block of " +
               std::to_string(target.block_size) + ". Name a type of smaller blocks for it";
    }
    if (!source.can_dequantize) {
        return "its type, " + source.name + ", cannot be converted to " + target.name + ". Start from F32, F16 or BF16";
    }
    return {};
}

PlannedTensor plan_tensor(const TypesByName & types, const upstream::TensorChoice & choice,
                          const RecipeTensor & tensor) {
    const QuantTypeInfo & source = find_type(types, tensor.type);
    const QuantTypeInfo & target = find_type(types, type_name(choice.type));
    const std::int64_t n = tensor.shape.back();
    PlannedTensor planned;
    planned.index = choice.index;
    planned.allowed = choice.allowed;
    planned.type = target.name;
    planned.fault = choice.fault.empty() ? "" : choice.fault + ". Name a type for it by an override";
    planned.source_row_bytes = row_bytes(source, n);
    if (choice.type == source.id || !planned.fault.empty()) {
        planned.row_bytes = planned.source_row_bytes;
        return planned;
    }
    planned.requires_imatrix = choice.requires_imatrix;
    planned.requantized = source.block_size > 1;
    planned.fault = conversion_fault(source, target, n);
    planned.row_bytes = row_bytes(target, n);
    return planned;
}

}  // namespace

std::vector<ModelType> model_types() {
    return known_model_types;
}

std::uint32_t quantization_version() {
    return GGML_QNT_VERSION;
}

std::vector<PlannedTensor> plan_types(const ModelShape & model, const RecipeRules & rules,
                                      const std::vector<RecipeTensor> & tensors) {
    const auto type = std::find_if(known_model_types.begin(), known_model_types.end(),
                                   [&](const ModelType & known) { return known.name == rules.type; });
    if (type == known_model_types.end()) {
        throw Error(ErrorKind::input, "recipe: '" + rules.type + "': there is no such model type.");
    }
    const TypesByName types = types_by_name();
    upstream::TypeRules upstream_rules;
    upstream_rules.file_type = type->file_type;
    upstream_rules.pure = rules.pure;
    upstream_rules.quantize_output = rules.quantize_output;
    upstream_rules.output_type = named_target(types, rules.output_type);
    upstream_rules.has_imatrix = rules.has_imatrix;
    upstream_rules.in_order = rules.in_order;
    const upstream::TypeChoices choices = upstream::choose_types(model, upstream_rules, tensor_facts(types, tensors));
    if (!choices.fault.empty()) {
        throw Error(ErrorKind::unsupported, "recipe: " + choices.fault + ".");
    }
    std::vector<PlannedTensor> plan;
    for (const upstream::TensorChoice & choice : choices.tensors) {
        plan.push_back(plan_tensor(types, choice, tensors[choice.index]));
    }
    return plan;
}

}  // namespace phiggml
