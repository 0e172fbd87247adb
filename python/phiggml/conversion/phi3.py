"""Phi3ForCausalLM: Phi-3-mini, Phi-3.5-mini, Phi-3-medium."""

from __future__ import annotations

import math
from typing import Any

from phiggml.conversion.architecture import Architecture, ModelConfig, TensorRule
from phiggml.conversion.fields import Fields
from phiggml.errors import UnsupportedError

__all__ = ["PHI3"]

# llama.cpp's LLAMA_MAX_LAYERS.
_MAX_LAYERS = 512
_MAX_VOCABULARY = 1 << 24
# The default of transformers' Phi3Config.
_ORIGINAL_CONTEXT = 4096
# "su" is the first name of LongRoPE; transformers reads "yarn" in a Phi-3 config as LongRoPE too.
_LONG_ROPE = frozenset({"longrope", "su", "yarn"})

_LAYER = "model.layers.{layer}."
_RULES = (
    TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
    TensorRule(
        _LAYER + "input_layernorm.weight", "blk.{layer}.attn_norm.weight", ("hidden",), float32=True
    ),
    TensorRule(
        _LAYER + "self_attn.qkv_proj.weight", "blk.{layer}.attn_qkv.weight", ("qkv", "hidden")
    ),
    TensorRule(
        _LAYER + "self_attn.o_proj.weight", "blk.{layer}.attn_output.weight", ("hidden", "heads")
    ),
    TensorRule(
        _LAYER + "post_attention_layernorm.weight",
        "blk.{layer}.ffn_norm.weight",
        ("hidden",),
        float32=True,
    ),
    TensorRule(
        _LAYER + "mlp.gate_up_proj.weight", "blk.{layer}.ffn_up.weight", ("gate_up", "hidden")
    ),
    TensorRule(
        _LAYER + "mlp.down_proj.weight", "blk.{layer}.ffn_down.weight", ("hidden", "feed_forward")
    ),
    TensorRule("model.norm.weight", "output_norm.weight", ("hidden",), float32=True),
    TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden"), optional_if="tied"),
)


def _attention_factor(rope: Fields, context: int, original: int) -> float:
    """What cosines and sines are multiplied by under LongRoPE (arXiv 2402.13753)."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    scale = rope.number("factor", context / original)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _read_rope(
    config: Fields, head_size: int | None, context: int
) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """Metadata and factor tensors from rope_scaling (old) or rope_parameters (new).

    `head_size` is None where it is unknown because of other faults.
    """
    rope = config.inner("rope_scaling" if config.raw("rope_scaling") else "rope_parameters")
    kind = rope.text("rope_type", rope.text("type", "default")).lower()
    share_of = rope if rope.has("partial_rotary_factor") else config
    share = share_of.number("partial_rotary_factor", 1.0, maximum=1.0)
    rotary_size = None if head_size is None else int(head_size * share)
    if rotary_size is not None and (rotary_size < 2 or rotary_size % 2):
        share_of.fault(
            "partial_rotary_factor",
            f"leaves {rotary_size} of {head_size} elements of a head to rotate; "
            "an even number above 0 is needed.",
        )
    original_of = config if config.has("original_max_position_embeddings") else rope
    original = original_of.integer("original_max_position_embeddings", _ORIGINAL_CONTEXT, minimum=2)
    theta_of = rope if rope.has("rope_theta") else config
    metadata: dict[str, Any] = {
        "phi3.rope.scaling.original_context_length": original,
        "phi3.rope.dimension_count": rotary_size,
        "phi3.rope.freq_base": theta_of.number("rope_theta", 10_000.0),
    }
    if kind == "default":
        return metadata, {}
    if kind not in _LONG_ROPE:
        known = ", ".join(sorted(_LONG_ROPE))
        rope.fault("rope_type" if rope.has("rope_type") else "type", f"known are {known}, null.")
        return metadata, {}
    pairs = None if rotary_size is None else rotary_size // 2
    vectors = {
        f"rope_factors_{which}.weight": rope.numbers(f"{which}_factor", pairs)
        for which in ("long", "short")
    }
    metadata["phi3.rope.scaling.attn_factor"] = _attention_factor(rope, context, original)
    return metadata, vectors


def _check_supported(config: Fields, head_size: int, heads: int, hidden: int) -> None:
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedError(
            f"convert: {config.path}: hidden_act is {activation!r}; Phi-3's graph has silu only."
        )
    if config.raw("quantization_config"):
        raise UnsupportedError(
            f"convert: {config.path}: the checkpoint is quantized already "
            "(quantization_config). Give the one it was made from."
        )
    if head_size * heads != hidden:
        raise UnsupportedError(
            f"convert: {config.path}: head_dim {head_size} times {heads} heads is not hidden_size "
            f"{hidden}; llama.cpp's phi3 graph needs them equal."
        )


def _read_config(config: Fields) -> ModelConfig:
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    layers = config.integer("num_hidden_layers", maximum=_MAX_LAYERS)
    feed_forward = config.integer("intermediate_size")
    vocabulary = config.integer("vocab_size", maximum=_MAX_VOCABULARY)
    context = config.integer("max_position_embeddings")
    head_size = config.integer("head_dim", max(hidden // heads, 1))
    # Sizes that are wrong themselves would only seem to contradict each other.
    sound = not config.faults.sentences
    if sound and not config.has("head_dim") and hidden % heads:
        config.fault("num_attention_heads", f"does not divide hidden_size {hidden}.")
    if sound and heads % kv_heads:
        config.fault("num_key_value_heads", f"does not divide num_attention_heads {heads}.")
    rope, vectors = _read_rope(config, head_size if sound else None, context)
    metadata = {
        "phi3.context_length": context,
        "phi3.embedding_length": hidden,
        "phi3.feed_forward_length": feed_forward,
        "phi3.block_count": layers,
        "phi3.attention.head_count": heads,
        "phi3.attention.head_count_kv": kv_heads,
        "phi3.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-5),
        # 0 says "no window"; at 4096 tokens of context an absent key is taken for 2047.
        "phi3.attention.sliding_window": config.integer("sliding_window", 0, minimum=0),
        **rope,
    }
    tied = config.boolean("tie_word_embeddings", False)
    if not config.faults.sentences:
        _check_supported(config, head_size, heads, hidden)
    return ModelConfig(
        dimensions={
            "layers": layers,
            "vocabulary": vocabulary,
            "hidden": hidden,
            "heads": head_size * heads,
            "qkv": head_size * (heads + 2 * kv_heads),
            "feed_forward": feed_forward,
            "gate_up": 2 * feed_forward,
        },
        conditions={"tied": tied},
        metadata=metadata,
        vectors=vectors,
    )


PHI3 = Architecture(
    name="Phi3ForCausalLM",
    model_type="phi3",
    gguf_name="phi3",
    rules=_RULES,
    ignored=(
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        r"model\.rotary_emb\.inv_freq",
    ),
    read_config=_read_config,
)
