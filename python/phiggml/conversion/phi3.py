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
from phiggml.conversion.decoder_config import (
    MAX_LAYERS,
    SAVED_BUFFERS,
    DecoderSizes,
    read_sizes,
    require_supported,
)
from phiggml.conversion.fields import Fields, shortest
from phiggml.conversion.rope import ROPE_VECTORS, Rope, read_rope
from phiggml.errors import UnsupportedError

__all__ = ["PHI3", "PHI3_RULES", "read_phi3_config"]

# The default of transformers' Phi3Config.
_ORIGINAL_CONTEXT = 4096
# transformers reads "yarn" in a Phi-3 config as LongRoPE.
_LONG_ROPE_TOO = frozenset({"yarn"})
_HEAD_SIZES = ("phi3.attention.key_length", "phi3.attention.value_length")
# Of a file of this context length that does not name its window (those of the first months).
_PLAIN_CONTEXT, _PLAIN_WINDOW = 4096, 2047

_LAYER = "model.layers.{layer}."
PHI3_RULES = (
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


def _dimensions(sizes: DecoderSizes) -> dict[str, int]:
    return {
        **sizes.dimensions,
        "qkv": sizes.head_size * (sizes.heads + 2 * sizes.kv_heads),
        "gate_up": 2 * sizes.feed_forward,
    }


def _attention_factor(scale: float, original: int) -> float:
    """What cosines and sines are multiplied by under LongRoPE (arXiv 2402.13753)."""
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _rope_metadata(rope: Rope, context: int) -> dict[str, Any]:
    original = _ORIGINAL_CONTEXT if rope.original is None else rope.original
    metadata: dict[str, Any] = {
        "phi3.rope.scaling.original_context_length": original,
        "phi3.rope.dimension_count": rope.size,
        "phi3.rope.freq_base": rope.theta,
    }
    if rope.is_long:
        if rope.fields.has("attention_factor"):
            factor = rope.fields.number("attention_factor")
        else:
            scale = rope.fields.number("factor", context / original)
            factor = _attention_factor(scale, original)
        metadata["phi3.rope.scaling.attn_factor"] = factor
    return metadata


def read_phi3_config(config: Fields) -> ModelConfig:
    """What the config.json of a Phi-3, or of a model whose text part is one, says."""
    sizes = read_sizes(config)
    rope = read_rope(config, sizes.head_size if sizes.sound else None, also_long=_LONG_ROPE_TOO)
    metadata = {
        **sizes.metadata("phi3"),
        "phi3.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-5),
        # 0 says "no window"; at 4096 tokens of context an absent key is taken for 2047.
        "phi3.attention.sliding_window": config.integer("sliding_window", 0, minimum=0),
        **_rope_metadata(rope, sizes.context),
    }
    if not sizes.is_split_evenly:
        # llama.cpp's own graph has no use for these; ours has.
        metadata |= dict.fromkeys(_HEAD_SIZES, sizes.head_size)
    vectors = rope.vectors()
    tied = config.boolean("tie_word_embeddings", False)
    if not config.faults.sentences:
        require_supported(config, "silu")
    return ModelConfig(
        dimensions=_dimensions(sizes),
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
    for name, field in ROPE_VECTORS.items():
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


def _written_head_size(metadata: Fields, hidden: int, heads: int) -> int:
    """What the file says about keys and values, which a checkpoint has one number for."""
    key_size, value_size = (metadata.integer(k, max(hidden // heads, 1)) for k in _HEAD_SIZES)
    if key_size != value_size:
        metadata.fault(_HEAD_SIZES[1], f"must be that of keys, {key_size}.")
    if hidden % heads and not metadata.has(_HEAD_SIZES[0]):
        metadata.fault("phi3.attention.head_count", f"does not divide {hidden}, the width.")
    return key_size


def _check_exportable(metadata: Fields, rows: int) -> None:
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
    sizes = DecoderSizes(
        hidden=hidden,
        heads=heads,
        kv_heads=metadata.integer("phi3.attention.head_count_kv", heads),
        head_size=_written_head_size(metadata, hidden, heads),
        feed_forward=metadata.integer("phi3.feed_forward_length"),
        layers=metadata.integer("phi3.block_count", maximum=MAX_LAYERS),
        vocabulary=rows,
        context=metadata.integer("phi3.context_length"),
        sound=not metadata.faults.sentences,
    )
    epsilon = metadata.number("phi3.attention.layer_norm_rms_epsilon")
    if sizes.sound and heads % sizes.kv_heads:
        metadata.fault("phi3.attention.head_count_kv", f"does not divide {heads}, the heads.")
    if metadata.faults.sentences:
        # Wrong sizes would only make what depends on them look wrong.
        return CheckpointConfig({}, {})
    _check_exportable(metadata, rows)
    window = metadata.integer(
        "phi3.attention.sliding_window",
        _PLAIN_WINDOW if sizes.context == _PLAIN_CONTEXT else 0,
        minimum=0,
    )
    fields = {
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": sizes.feed_forward,
        "max_position_embeddings": sizes.context,
        "num_attention_heads": heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": shortest(epsilon),
        "sliding_window": window or None,
        "use_cache": True,
        **({} if sizes.is_split_evenly else {"head_dim": sizes.head_size}),
        **_write_rope(metadata, vectors, sizes.head_size, sizes.context),
    }
    return CheckpointConfig(dimensions=_dimensions(sizes), fields=fields)


PHI3 = Architecture(
    name="Phi3ForCausalLM",
    model_type="phi3",
    gguf_name="phi3",
    rules=PHI3_RULES,
    vectors=tuple(ROPE_VECTORS),
    ignored=SAVED_BUFFERS,
    read_config=read_phi3_config,
    write_config=_write_config,
)
