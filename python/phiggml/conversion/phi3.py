"""Phi3ForCausalLM: Phi-3-mini, Phi-3.5-mini, Phi-3-medium."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from phiggml.conversion.architecture import (
    Architecture,
    CheckpointConfig,
    ModelConfig,
    TensorRule,
)
from phiggml.conversion.fields import Fields, shortest
from phiggml.errors import UnsupportedError

__all__ = ["PHI3"]

# llama.cpp's LLAMA_MAX_LAYERS.
_MAX_LAYERS = 512
_MAX_VOCABULARY = 1 << 24
# The default of transformers' Phi3Config.
_ORIGINAL_CONTEXT = 4096
# "su" is the first name of LongRoPE; transformers reads "yarn" in a Phi-3 config as LongRoPE too.
_LONG_ROPE = frozenset({"longrope", "su", "yarn"})
_VECTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
# Of a file of this context length that does not name its window (those of the first months).
_PLAIN_CONTEXT, _PLAIN_WINDOW = 4096, 2047

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


def _dimensions(hidden: int, heads: int, kv_heads: int, *, feed_forward: int) -> dict[str, int]:
    head_size = hidden // heads
    return {
        "hidden": hidden,
        "heads": head_size * heads,
        "qkv": head_size * (heads + 2 * kv_heads),
        "feed_forward": feed_forward,
        "gate_up": 2 * feed_forward,
    }


def _attention_factor(scale: float, original: int) -> float:
    """What cosines and sines are multiplied by under LongRoPE (arXiv 2402.13753)."""
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
    fields = ("long_factor", "short_factor")
    vectors = {
        name: rope.numbers(field, pairs) for name, field in zip(_VECTORS, fields, strict=True)
    }
    if rope.has("attention_factor"):
        factor = rope.number("attention_factor")
    else:
        factor = _attention_factor(rope.number("factor", context / original), original)
    metadata["phi3.rope.scaling.attn_factor"] = factor
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
            **_dimensions(hidden, heads, kv_heads, feed_forward=feed_forward),
        },
        conditions={"tied": tied},
        metadata=metadata,
        vectors=vectors,
    )


def _write_rope(
    metadata: Fields, vectors: Mapping[str, tuple[float, ...]], head_size: int, context: int
) -> dict[str, Any]:
    """The fields about RoPE in the layout of 2024, which every version of transformers reads."""
    rotary_size = metadata.integer("phi3.rope.dimension_count", head_size, maximum=head_size)
    if rotary_size % 2:
        metadata.fault("phi3.rope.dimension_count", "must be even.")
    fields: dict[str, Any] = {
        "rope_scaling": None,
        "rope_theta": shortest(metadata.number("phi3.rope.freq_base", 10_000.0)),
    }
    if rotary_size != head_size:
        share = rotary_size / head_size
        # Readers round the product down.
        fields["partial_rotary_factor"] = (
            share if int(head_size * share) == rotary_size else math.nextafter(share, 1)
        )
    key = "phi3.rope.scaling.original_context_length"
    if not vectors:
        if metadata.has(key):
            fields["original_max_position_embeddings"] = metadata.integer(key, minimum=2)
        return fields
    original = metadata.integer(key, _ORIGINAL_CONTEXT, minimum=2)
    fields["original_max_position_embeddings"] = original
    scaling: dict[str, Any] = {"type": "longrope"}
    for name, field in zip(_VECTORS, ("long_factor", "short_factor"), strict=True):
        values = vectors.get(name, ())
        if len(values) != rotary_size // 2 or not all(1e-37 <= v <= 3.4e38 for v in values):
            metadata.faults.add(
                metadata.path,
                f"tensor {name!r} must hold {rotary_size // 2} finite numbers above 0, half a "
                "rotary size.",
            )
        scaling[field] = [shortest(value) for value in values]
    stored = np.float32(metadata.number("phi3.rope.scaling.attn_factor", 1.0))
    # A third field that only repeats what readers compute would keep older ones from reading it.
    if stored != np.float32(_attention_factor(context / original, original)):
        scaling["attention_factor"] = shortest(float(stored))
    return {**fields, "rope_scaling": scaling}


def _check_exportable(metadata: Fields, head_size: int, rows: int) -> None:
    for name in ("phi3.attention.key_length", "phi3.attention.value_length"):
        if metadata.integer(name, head_size) != head_size:
            metadata.fault(name, f"must be embedding_length / head_count, {head_size}.")
    if metadata.integer("phi3.vocab_size", rows) != rows:
        metadata.fault("phi3.vocab_size", f"differs from the {rows} rows of token_embd.weight.")
    kind = metadata.text("phi3.rope.scaling.type", "none")
    if kind not in ("none", "longrope"):
        raise UnsupportedError(
            f"export: {metadata.path}: phi3.rope.scaling.type is {kind!r}; a Phi-3 checkpoint "
            "knows longrope only."
        )


def _write_config(
    metadata: Fields, vectors: Mapping[str, tuple[float, ...]], rows: int
) -> CheckpointConfig:
    hidden = metadata.integer("phi3.embedding_length")
    heads = metadata.integer("phi3.attention.head_count")
    kv_heads = metadata.integer("phi3.attention.head_count_kv", heads)
    layers = metadata.integer("phi3.block_count", maximum=_MAX_LAYERS)
    feed_forward = metadata.integer("phi3.feed_forward_length")
    context = metadata.integer("phi3.context_length")
    epsilon = metadata.number("phi3.attention.layer_norm_rms_epsilon")
    if not metadata.faults.sentences:
        if hidden % heads:
            metadata.fault("phi3.attention.head_count", f"does not divide {hidden}, the width.")
        if heads % kv_heads:
            metadata.fault("phi3.attention.head_count_kv", f"does not divide {heads}, the heads.")
    if metadata.faults.sentences:
        # Wrong sizes would only make what depends on them look wrong.
        return CheckpointConfig({}, {})
    head_size = hidden // heads
    _check_exportable(metadata, head_size, rows)
    window = metadata.integer(
        "phi3.attention.sliding_window",
        _PLAIN_WINDOW if context == _PLAIN_CONTEXT else 0,
        minimum=0,
    )
    fields = {
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": shortest(epsilon),
        "sliding_window": window or None,
        "use_cache": True,
        **_write_rope(metadata, vectors, head_size, context),
    }
    return CheckpointConfig(
        dimensions={
            "layers": layers,
            **_dimensions(hidden, heads, kv_heads, feed_forward=feed_forward),
        },
        fields=fields,
    )


PHI3 = Architecture(
    name="Phi3ForCausalLM",
    model_type="phi3",
    gguf_name="phi3",
    rules=_RULES,
    vectors=_VECTORS,
    ignored=(
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        r"model\.rotary_emb\.inv_freq",
    ),
    read_config=_read_config,
    write_config=_write_config,
)
