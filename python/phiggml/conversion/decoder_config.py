"""What every decoder's config.json says alike: sizes, and what no graph of ours computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phiggml.conversion.fields import Fields, shown
from phiggml.errors import UnsupportedError

__all__ = ["MAX_LAYERS", "SAVED_BUFFERS", "DecoderSizes", "read_sizes", "require_supported"]

# llama.cpp's LLAMA_MAX_LAYERS.
MAX_LAYERS = 512
_MAX_VOCABULARY = 1 << 24
SAVED_BUFFERS = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"model\.rotary_emb\.inv_freq",
)
"""Tensors without weights, of the rotary embedding, which older versions of transformers saved."""


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder.

    Attributes:
        sound: whether none of them is wrong; where one is, what follows from it says nothing.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    layers: int
    vocabulary: int
    context: int
    sound: bool

    @property
    def is_split_evenly(self) -> bool:
        """Whether the heads together are as wide as the model."""
        return self.head_size * self.heads == self.hidden

    @property
    def dimensions(self) -> dict[str, int]:
        """By the names that the shapes of TensorRule use."""
        return {
            "layers": self.layers,
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "heads": self.head_size * self.heads,
            "kv_heads": self.head_size * self.kv_heads,
            "feed_forward": self.feed_forward,
        }

    def metadata(self, prefix: str) -> dict[str, Any]:
        """The keys of the GGUF file that every decoder has."""
        return {
            f"{prefix}.context_length": self.context,
            f"{prefix}.embedding_length": self.hidden,
            f"{prefix}.feed_forward_length": self.feed_forward,
            f"{prefix}.block_count": self.layers,
            f"{prefix}.attention.head_count": self.heads,
            f"{prefix}.attention.head_count_kv": self.kv_heads,
        }


def read_sizes(config: Fields, *, widening: int | None = None) -> DecoderSizes:
    """Reads the sizes, adding faults where they are wrong or contradict each other.

    Args:
        config: config.json.
        widening: intermediate_size in units of hidden_size where it is null; None: it is needed.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    layers = config.integer("num_hidden_layers", maximum=MAX_LAYERS)
    feed_forward = config.integer("intermediate_size", widening and widening * hidden)
    vocabulary = config.integer("vocab_size", maximum=_MAX_VOCABULARY)
    context = config.integer("max_position_embeddings")
    head_size = config.integer("head_dim", max(hidden // heads, 1))
    # Sizes that are wrong themselves would only seem to contradict each other.
    sound = not config.faults.sentences
    if sound and not config.has("head_dim") and hidden % heads:
        config.fault("num_attention_heads", f"does not divide hidden_size {hidden}.")
    if sound and heads % kv_heads:
        config.fault("num_key_value_heads", f"does not divide num_attention_heads {heads}.")
    return DecoderSizes(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        feed_forward=feed_forward,
        layers=layers,
        vocabulary=vocabulary,
        context=context,
        sound=sound,
    )


def require_supported(config: Fields, activation: str) -> None:
    """Refuses what is valid and computed by no graph here.

    Raises:
        UnsupportedError: another activation, or weights that are quantized already.
    """
    stated = config.text("hidden_act", activation)
    if stated != activation:
        raise UnsupportedError(
            f"convert: {config.path}: hidden_act is {shown(stated)}; "
            f"this architecture's graph has {activation} only."
        )
    if config.raw("quantization_config"):
        raise UnsupportedError(
            f"convert: {config.path}: the checkpoint is quantized already "
            "(quantization_config). Give the one it was made from."
        )
