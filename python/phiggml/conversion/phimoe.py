"""PhiMoEForCausalLM: Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from phiggml.conversion.architecture import Architecture, Form, ModelConfig, TensorRule
from phiggml.conversion.decoder_config import SAVED_BUFFERS, read_sizes, require_supported
from phiggml.conversion.fields import Fields
from phiggml.conversion.rope import ROPE_VECTORS, Rope, read_rope
from phiggml.errors import UnsupportedError

__all__ = ["PHIMOE"]

# llama.cpp's LLAMA_MAX_EXPERTS.
_MAX_EXPERTS = 1024
# Sparsemixer (arXiv 2409.12136) picks one expert and then one more.
_PICKED = 2
# Defaults of transformers' PhimoeConfig.
_THETA = 1_000_000.0
_EXPERTS = 16
_JITTER = 0.01
_LAYER, _BLOCK = "model.layers.{layer}.", "blk.{layer}."
# As released, and as transformers 5 holds them: one tensor of all experts.
_RELEASED, _FUSED = _LAYER + "block_sparse_moe.", _LAYER + "mlp."
_ONE_EXPERT = _RELEASED + "experts.{expert}."


def _norm(source: str, target: str) -> Iterator[TensorRule]:
    yield TensorRule(f"{source}.weight", f"{target}.weight", ("hidden",), float32=True)
    yield TensorRule(f"{source}.bias", f"{target}.bias", ("hidden",), float32=True)


def _projection(source: str, target: str, *shape: str, biased: str) -> Iterator[TensorRule]:
    optional_if = "tied" if source == "lm_head" else None
    yield TensorRule(f"{source}.weight", f"{target}.weight", shape, optional_if=optional_if)
    yield TensorRule(f"{source}.bias", f"{target}.bias", shape[:1], float32=True, only_if=biased)


_ATTENTION = (
    *_projection(
        _LAYER + "self_attn.q_proj", _BLOCK + "attn_q", "heads", "hidden", biased="attention_bias"
    ),
    *_projection(
        _LAYER + "self_attn.k_proj",
        _BLOCK + "attn_k",
        "kv_heads",
        "hidden",
        biased="attention_bias",
    ),
    *_projection(
        _LAYER + "self_attn.v_proj",
        _BLOCK + "attn_v",
        "kv_heads",
        "hidden",
        biased="attention_bias",
    ),
    *_projection(
        _LAYER + "self_attn.o_proj",
        _BLOCK + "attn_output",
        "hidden",
        "heads",
        biased="attention_bias",
    ),
)
_EXPERT_RULES = (
    TensorRule(
        _RELEASED + "gate.weight",
        _BLOCK + "ffn_gate_inp.weight",
        ("experts", "hidden"),
        float32=True,
        others=(Form(_FUSED + "router.weight"),),
    ),
    TensorRule(
        _ONE_EXPERT + "w1.weight",
        _BLOCK + "ffn_gate_exps.weight",
        ("experts", "feed_forward", "hidden"),
        others=(Form(_FUSED + "experts.gate_up_proj", part=0, parts=2),),
    ),
    TensorRule(
        _ONE_EXPERT + "w2.weight",
        _BLOCK + "ffn_down_exps.weight",
        ("experts", "hidden", "feed_forward"),
        others=(Form(_FUSED + "experts.down_proj"),),
    ),
    TensorRule(
        _ONE_EXPERT + "w3.weight",
        _BLOCK + "ffn_up_exps.weight",
        ("experts", "feed_forward", "hidden"),
        others=(Form(_FUSED + "experts.gate_up_proj", part=1, parts=2),),
    ),
)
_RULES = (
    TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
    *_norm(_LAYER + "input_layernorm", _BLOCK + "attn_norm"),
    *_ATTENTION,
    *_norm(_LAYER + "post_attention_layernorm", _BLOCK + "ffn_norm"),
    *_EXPERT_RULES,
    *_norm("model.norm", "output_norm"),
    *_projection("lm_head", "output", "vocabulary", "hidden", biased="lm_head_bias"),
)


def _rope_metadata(config: Fields, rope: Rope, head_size: int, context: int) -> dict[str, Any]:
    if rope.size is not None and rope.size != head_size:
        config.fault("partial_rotary_factor", "a PhiMoE rotates whole heads.")
    metadata: dict[str, Any] = {
        "phimoe.rope.dimension_count": rope.size,
        "phimoe.rope.freq_base": rope.theta,
    }
    original = context if rope.original is None and rope.is_long else rope.original
    if original is not None:
        metadata["phimoe.rope.scaling.original_context_length"] = original
    if rope.is_long:
        for key, field in (
            ("attn_factor", "short_mscale"),
            ("attn_factor_long", "long_mscale"),
        ):
            metadata[f"phimoe.rope.scaling.{key}"] = rope.fields.number(field)
    return metadata


def _read_config(config: Fields) -> ModelConfig:
    sizes = read_sizes(config)
    rope = read_rope(
        config, sizes.head_size if sizes.sound else None, theta=_THETA, inner_original=True
    )
    experts = config.integer("num_local_experts", _EXPERTS, minimum=2, maximum=_MAX_EXPERTS)
    picked = config.integer("num_experts_per_tok", _PICKED)
    metadata = {
        **sizes.metadata("phimoe"),
        "phimoe.attention.key_length": sizes.head_size,
        "phimoe.attention.value_length": sizes.head_size,
        "phimoe.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-5),
        "phimoe.attention.sliding_window": config.integer("sliding_window", 0, minimum=0),
        **_rope_metadata(config, rope, sizes.head_size, sizes.context),
        "phimoe.expert_count": experts,
        "phimoe.expert_used_count": picked,
        "phimoe.router_jitter_noise": config.number(
            "router_jitter_noise", _JITTER, minimum=0.0, maximum=1.0
        ),
    }
    conditions = {
        "tied": config.boolean("tie_word_embeddings", False),
        "attention_bias": config.boolean("attention_bias", False),
        "lm_head_bias": config.boolean("lm_head_bias", False),
    }
    vectors = rope.vectors()
    if not config.faults.sentences:
        require_supported(config, "silu")
        if picked != _PICKED:
            raise UnsupportedError(
                f"convert: {config.path}: num_experts_per_tok is {picked}; "
                f"PhiMoE's router picks {_PICKED}."
            )
    return ModelConfig(
        dimensions={**sizes.dimensions, "experts": experts},
        conditions=conditions,
        metadata=metadata,
        vectors=vectors,
    )


PHIMOE = Architecture(
    name="PhiMoEForCausalLM",
    model_type="phimoe",
    gguf_name="phimoe",
    rules=_RULES,
    vectors=tuple(ROPE_VECTORS),
    ignored=SAVED_BUFFERS,
    read_config=_read_config,
    aliases=("PhimoeForCausalLM",),
)
