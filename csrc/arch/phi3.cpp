// The members of llama_model_phi3, in the place of upstream's: Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini, with the
// rotary positions and the window that the reference implementation gives them.
#include "attention.h"
#include "hyperparameters.h"
#include "models/models.h"

void llama_model_phi3::load_arch_hparams(llama_model_loader & ml) {
    phiggml::arch::load_phi_hyperparameters(ml, hparams);
    switch (hparams.n_layer()) {
        case 32: type = LLM_TYPE_3B; break;
        case 40: type = LLM_TYPE_14B; break;
        default: type = LLM_TYPE_UNKNOWN;
    }
}

void llama_model_phi3::load_arch_tensors(llama_model_loader &) {
    LLAMA_LOAD_LOCALS;
    const std::int64_t n_embd_q = n_embd_head_k * n_head;

    tok_embd = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, 0);
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output = create_tensor(tn(LLM_TENSOR_OUTPUT, "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    if (output == nullptr) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }
    for (int i = 0; i < n_layer; ++i) {
        llama_layer & layer = layers[i];
        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);
        create_tensor_qkv(layer, i, n_embd, n_embd_q, n_embd_k_gqa, n_embd_v_gqa, TENSOR_NOT_REQUIRED);
        layer.wo = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_q, n_embd}, 0);
        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);
        layer.ffn_up = create_tensor(tn(LLM_TENSOR_FFN_UP, "weight", i), {n_embd, 2 * n_ff}, 0);
        layer.ffn_down = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "weight", i), {n_ff, n_embd}, 0);
        const int factors = TENSOR_NOT_REQUIRED | (i == 0 ? 0 : TENSOR_DUPLICATED);
        layer.rope_long = create_tensor(tn(LLM_TENSOR_ROPE_FACTORS_LONG, "weight", i), {n_rot / 2}, factors);
        layer.rope_short = create_tensor(tn(LLM_TENSOR_ROPE_FACTORS_SHORT, "weight", i), {n_rot / 2}, factors);
    }
}

std::unique_ptr<llm_graph_context> llama_model_phi3::build_arch_graph(const llm_graph_params & params) const {
    // Attention asks for the window itself; upstream's declaration wants one of the two.
    return std::make_unique<graph<false>>(*this, params);
}

template <>
llama_model_phi3::graph<false>::graph(const llama_model & model, const llm_graph_params & params)
    : llm_graph_context(params) {
    ggml_tensor * residual = build_inp_embd(model.tok_embd);
    const phiggml::arch::Attention attention(*this, model);
    ggml_tensor * output_rows = build_inp_out_ids();
    for (int i = 0; i < n_layer; ++i) {
        const llama_layer & layer = model.layers[i];
        ggml_tensor * cur = build_norm(residual, layer.attn_norm, nullptr, LLM_NORM_RMS, i);
        cb(cur, "attn_norm", i);
        cur = attention.build(cur, i);
        if (i == n_layer - 1 && output_rows != nullptr) {
            cur = ggml_get_rows(ctx0, cur, output_rows);
            residual = ggml_get_rows(ctx0, residual, output_rows);
        }
        residual = ggml_add(ctx0, residual, cur);
        cur = build_norm(residual, layer.ffn_norm, nullptr, LLM_NORM_RMS, i);
        cb(cur, "ffn_norm", i);
        cur = build_ffn(cur, layer.ffn_up, nullptr, layer.ffn_up_s, nullptr, nullptr, nullptr, layer.ffn_down, nullptr,
                        layer.ffn_down_s, nullptr, LLM_FFN_SWIGLU, LLM_FFN_SEQ, i);
        cb(cur, "ffn_out", i);
        residual = build_cvec(ggml_add(ctx0, residual, cur), i);
        cb(residual, "l_out", i);
    }
    res->t_embd = build_norm(residual, model.output_norm, nullptr, LLM_NORM_RMS, -1);
    cb(res->t_embd, "result_norm", -1);
    res->t_logits = build_lora_mm(model.output, res->t_embd, model.output_s);
    cb(res->t_logits, "result_output", -1);
    ggml_build_forward_expand(gf, res->t_logits);
}
