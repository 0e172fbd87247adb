"""PhiForCausalLM: phi-1, phi-1.5, phi-2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from phiggml.conversion.architecture import Architecture, ModelConfig, TensorRule
from phiggml.conversion.decoder_config import SAVED_BUFFERS, read_sizes, require_supported
from phiggml.conversion.fields import Fields
from phiggml.conversion.rope import read_rope
from phiggml.errors import UnsupportedError

__all__ = ["PHI2"]

# The default of transformers' PhiConfig.
_ROTARY_SHARE = 0.5
_THETA = 10_000.0
# intermediate_size in units of hidden_size where config.json leaves it null.
_WIDENING = 4
_EMBEDDING = "model.embed_tokens.weight"
_LAYER, _BLOCK = "model.layers.{layer}.", "blk.{layer}."


def _with_bias(source: str, target: str, *shape: str) -> Iterator[TensorRule]:
    """A weight and its bias, which has one number for each of the weight's rows."""
    float32 = len(shape) == 1
    yield TensorRule(f"{source}.weight", f"{target}.weight", shape, float32)
    yield TensorRule(f"{source}.bias", f"{target}.bias", shape[:1], float32=True)


_RULES = (
    TensorRule(_EMBEDDING, "token_embd.weight", ("vocabulary", "hidden")),
    *_with_bias(_LAYER + "input_layernorm", _BLOCK + "attn_norm", "hidden"),
    *_with_bias(_LAYER + "self_attn.q_proj", _BLOCK + "attn_q", "heads", "hidden"),
    *_with_bias(_LAYER + "self_attn.k_proj", _BLOCK + "attn_k", "kv_heads", "hidden"),
    *_with_bias(_LAYER + "self_attn.v_proj", _BLOCK + "attn_v", "kv_heads", "hidden"),
    *_with_bias(_LAYER + "self_attn.dense", _BLOCK + "attn_output", "hidden", "heads"),
    *_with_bias(_LAYER + "mlp.fc1", _BLOCK + "ffn_up", "feed_forward", "hidden"),
    *_with_bias(_LAYER + "mlp.fc2", _BLOCK + "ffn_down", "hidden", "feed_forward"),
    *_with_bias("model.final_layernorm", "output_norm", "hidden"),
    # llama.cpp's graph needs both: with tied weights the embedding is written once more.
    TensorRule(
        "lm_head.weight",
        "output.weight",
        ("vocabulary", "hidden"),
        optional_if="tied",
        tied_to=_EMBEDDING,
    ),
    TensorRule("lm_head.bias", "output.bias", ("vocabulary",), float32=True),
)


def _read_config(config: Fields) -> ModelConfig:
    sizes = read_sizes(config, widening=_WIDENING)
    head_size = sizes.head_size if sizes.sound else None
    rope = read_rope(config, head_size, share=_ROTARY_SHARE, theta=_THETA)
    metadata: dict[str, Any] = {
        **sizes.metadata("phi2"),
        "phi2.attention.layer_norm_epsilon": config.number("layer_norm_eps", 1e-5),
        "phi2.rope.dimension_count": rope.size,
        "tokenizer.ggml.add_bos_token": False,
    }
    if rope.theta != _THETA:
        metadata["phi2.rope.freq_base"] = rope.theta
    tied = config.boolean("tie_word_embeddings", False)
    normed = config.boolean("qk_layernorm", False)
    if not config.faults.sentences:
        require_supported(config, "gelu_new")
        _require_graph(config, normed=normed, even=sizes.is_split_evenly, long=rope.is_long)
    return ModelConfig(
        dimensions=sizes.dimensions, conditions={"tied": tied}, metadata=metadata, vectors={}
    )


def _require_graph(config: Fields, *, normed: bool, even: bool, long: bool) -> None:
    for is_so, what in (
        (normed, "qk_layernorm is true"),
        (not even, "head_dim times num_attention_heads is not hidden_size"),
        (long, "the rotary embedding is LongRoPE"),
    ):
        if is_so:
            raise UnsupportedError(
                f"convert: {config.path}: {what}; llama.cpp's graph of phi-2 has no such thing."
            )


PHI2 = Architecture(
    name="PhiForCausalLM",
    model_type="phi",
    gguf_name="phi2",
    rules=_RULES,
    vectors=(),
    ignored=SAVED_BUFFERS,
    read_config=_read_config,
)
