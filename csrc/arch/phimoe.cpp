// The members of llama_model_phimoe, in the place of upstream's: Phi-3.5-MoE, Phi-mini-MoE and Phi-tiny-MoE, with
// LayerNorm and the sparse mixer of the reference implementation.
#include "attention.h"
#include "hyperparameters.h"
#include "models/models.h"

namespace {

constexpr std::int64_t n_chosen = 2;  // the sparse mixer chooses a first expert, and a second among the others

// A graph of its own: upstream's declaration shares phi3's.
struct PhimoeGraph : llm_graph_context {
    PhimoeGraph(const llama_model & model, const llm_graph_params & params);

private:
    // Which experts a token goes to, and with what weights: the chosen expert's share of a softmax over those whose
    // score is within twice the jitter, relatively, of the best that is left (arXiv 2409.12136).
    struct Choice {
        ggml_tensor * experts;  // int32[2, n_tokens]
        ggml_tensor * weights;  // float[1, 2, n_tokens]
    };
    Choice sparse_mixer(ggml_tensor * scores, int layer) const;
    ggml_tensor * share(ggml_tensor * scores, ggml_tensor * best, bool without_first) const;
    ggml_tensor * build_experts(const llama_layer & weights, ggml_tensor * cur, int layer) const;
};

// The share of the best score in a softmax over the scores that count as equal to it. Where the first choice is left
// out, its score is the only one that may lie above `best`; its distance is then taken for 0, and its term, exactly 1,
// is taken off the sum. A score that is NaN makes the first share NaN; ggml_relu would hide it.
ggml_tensor * PhimoeGraph::share(ggml_tensor * scores, ggml_tensor * best, bool without_first) const {
    const float tolerance = 2.0f * phiggml::arch::router_jitter(hparams);
    ggml_tensor * below = ggml_neg(ctx0, ggml_sub(ctx0, scores, best));
    if (without_first) {
        below = ggml_relu(ctx0, below);
    }
    ggml_tensor * above = ggml_relu(ctx0, ggml_sub(ctx0, ggml_abs(ctx0, scores), best));
    ggml_tensor * larger = ggml_add(ctx0, above, best);  // max(|score|, best)
    ggml_tensor * excess = ggml_sub(ctx0, below, ggml_scale(ctx0, larger, tolerance));
    ggml_tensor * counts = ggml_scale_bias(ctx0, ggml_step(ctx0, excess), -1.0f, 1.0f);
    ggml_tensor * terms = ggml_mul(ctx0, ggml_exp(ctx0, ggml_neg(ctx0, below)), counts);
    ggml_tensor * sum = ggml_sum_rows(ctx0, terms);
    if (without_first) {
        sum = ggml_scale_bias(ctx0, sum, 1.0f, -1.0f);
    }
    return ggml_div(ctx0, ggml_scale_bias(ctx0, sum, 0.0f, 1.0f), sum);
}

PhimoeGraph::Choice PhimoeGraph::sparse_mixer(ggml_tensor * scores, int layer) const {
    const std::int64_t n_rows = scores->ne[1];
    ggml_tensor * experts = ggml_argsort_top_k(ctx0, scores, static_cast<int>(n_chosen));
    ggml_tensor * best = ggml_get_rows(ctx0, ggml_reshape_3d(ctx0, scores, 1, n_expert, n_rows), experts);
    const auto nth_best = [&](std::size_t n) {
        return ggml_cont(ctx0, ggml_view_2d(ctx0, best, 1, n_rows, best->nb[2], n * best->nb[1]));
    };
    ggml_tensor * first = share(scores, nth_best(0), false);
    ggml_tensor * second = share(scores, nth_best(1), true);
    ggml_tensor * weights = ggml_reshape_3d(ctx0, ggml_concat(ctx0, first, second, 0), 1, n_chosen, n_rows);
    cb(weights, "ffn_moe_weights", layer);
    return {experts, weights};
}

ggml_tensor * PhimoeGraph::build_experts(const llama_layer & weights, ggml_tensor * cur, int layer) const {
    const std::int64_t n_rows = cur->ne[1];
    ggml_tensor * scores = build_lora_mm(weights.ffn_gate_inp, cur);
    cb(scores, "ffn_moe_logits", layer);
    const Choice choice = sparse_mixer(scores, layer);
    ggml_build_forward_expand(gf, choice.weights);
    ggml_tensor * slots = build_moe_cache_slots(choice.experts, weights.ffn_up_exps, weights.ffn_gate_exps,
                                                weights.ffn_down_exps, nullptr, layer);
    cur = ggml_reshape_3d(ctx0, cur, n_embd, 1, n_rows);
    ggml_tensor * up = build_lora_mm_id(weights.ffn_up_exps, cur, choice.experts, weights.ffn_up_exps_s, slots);
    ggml_tensor * gate = build_lora_mm_id(weights.ffn_gate_exps, cur, choice.experts, weights.ffn_gate_exps_s, slots);
    cur = ggml_swiglu_split(ctx0, gate, up);
    cur = build_lora_mm_id(weights.ffn_down_exps, cur, choice.experts, weights.ffn_down_exps_s, slots);
    cb(cur, "ffn_moe_down", layer);
    cur = ggml_mul(ctx0, cur, choice.weights);
    ggml_tensor * first = ggml_view_2d(ctx0, cur, n_embd, n_rows, cur->nb[2], 0);
    ggml_tensor * second = ggml_view_2d(ctx0, cur, n_embd, n_rows, cur->nb[2], cur->nb[1]);
    cur = ggml_add(ctx0, first, second);
    cb(cur, "ffn_moe_out", layer);
    return cur;
}

PhimoeGraph::PhimoeGraph(const llama_model & model, const llm_graph_params & params) : llm_graph_context(params) {
    ggml_tensor * residual = build_inp_embd(model.tok_embd);
    const phiggml::arch::Attention attention(*this, model);
    ggml_tensor * output_rows = build_inp_out_ids();
    for (int i = 0; i < n_layer; ++i) {
        const llama_layer & layer = model.layers[i];
        ggml_tensor * cur = build_norm(residual, layer.attn_norm, layer.attn_norm_b, LLM_NORM, i);
        cb(cur, "attn_norm", i);
        cur = attention.build(cur, i);
        if (i == n_layer - 1 && output_rows != nullptr) {
            cur = ggml_get_rows(ctx0, cur, output_rows);
            residual = ggml_get_rows(ctx0, residual, output_rows);
        }
        residual = ggml_add(ctx0, residual, cur);
        cur = build_norm(residual, layer.ffn_norm, layer.ffn_norm_b, LLM_NORM, i);
        cb(cur, "ffn_norm", i);
        cur = build_experts(layer, cur, i);
        residual = build_cvec(ggml_add(ctx0, residual, cur), i);
        cb(residual, "l_out", i);
    }
    res->t_embd = build_norm(residual, model.output_norm, model.output_norm_b, LLM_NORM, -1);
    cb(res->t_embd, "result_norm", -1);
    res->t_logits = build_lora_mm(model.output, res->t_embd, model.output_s);
    if (model.output_b != nullptr) {
        res->t_logits = ggml_add(ctx0, res->t_logits, model.output_b);
    }
    cb(res->t_logits, "result_output", -1);
    ggml_build_forward_expand(gf, res->t_logits);
}

}  // namespace

void llama_model_phimoe::load_arch_hparams(llama_model_loader & ml) {
    phiggml::arch::load_phi_hyperparameters(ml, hparams);
    phiggml::arch::load_phimoe_hyperparameters(ml, hparams);
    type = hparams.n_layer() == 32 && hparams.n_ff() == 6400 ? LLM_TYPE_16x3_8B : LLM_TYPE_UNKNOWN;
}

void llama_model_phimoe::load_arch_tensors(llama_model_loader &) {
    LLAMA_LOAD_LOCALS;
    const std::int64_t n_embd_q = n_embd_head_k * n_head;

    tok_embd = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, 0);
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output_norm_b = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "bias"), {n_embd}, 0);
    output = create_tensor(tn(LLM_TENSOR_OUTPUT, "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    if (output == nullptr) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }
    output_b = create_tensor(tn(LLM_TENSOR_OUTPUT, "bias"), {n_vocab}, TENSOR_NOT_REQUIRED);
    for (int i = 0; i < n_layer; ++i) {
        llama_layer & layer = layers[i];
        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);
        layer.attn_norm_b = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "bias", i), {n_embd}, 0);
        create_tensor_qkv(layer, i, n_embd, n_embd_q, n_embd_k_gqa, n_embd_v_gqa, 0);
        layer.wo = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_q, n_embd}, 0);
        layer.wo_b = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "bias", i), {n_embd}, TENSOR_NOT_REQUIRED);
        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);
        layer.ffn_norm_b = create_tensor(tn(LLM_TENSOR_FFN_NORM, "bias", i), {n_embd}, 0);
        layer.ffn_gate_inp = create_tensor(tn(LLM_TENSOR_FFN_GATE_INP, "weight", i), {n_embd, n_expert}, 0);
        layer.ffn_gate_exps = create_tensor(tn(LLM_TENSOR_FFN_GATE_EXPS, "weight", i), {n_embd, n_ff, n_expert}, 0);
        layer.ffn_down_exps = create_tensor(tn(LLM_TENSOR_FFN_DOWN_EXPS, "weight", i), {n_ff, n_embd, n_expert}, 0);
        layer.ffn_up_exps = create_tensor(tn(LLM_TENSOR_FFN_UP_EXPS, "weight", i), {n_embd, n_ff, n_expert}, 0);
        const int factors = TENSOR_NOT_REQUIRED | (i == 0 ? 0 : TENSOR_DUPLICATED);
        layer.rope_long = create_tensor(tn(LLM_TENSOR_ROPE_FACTORS_LONG, "weight", i), {n_rot / 2}, factors);
        layer.rope_short = create_tensor(tn(LLM_TENSOR_ROPE_FACTORS_SHORT, "weight", i), {n_rot / 2}, factors);
    }
}

std::unique_ptr<llm_graph_context> llama_model_phimoe::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<PhimoeGraph>(*this, params);
}
