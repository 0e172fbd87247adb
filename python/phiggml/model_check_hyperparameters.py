"""A model's hyperparameters: what llama.cpp asserts of them, of all models and of those known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phiggml.model_check_metadata import CheckedMetadata

__all__ = ["KNOWN", "Hyperparameters", "check_hyperparameters"]

MOST_LAYERS = 512
"""Upstream's own ceiling (LLAMA_MAX_LAYERS), beyond which it asserts."""

MOST_EXPERTS = 1024
"""Likewise, LLAMA_MAX_EXPERTS."""

_MOST = 2**31 - 1  # upstream hands these out as 32-bit integers with a sign

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_CLASSIFIER_ACTIVATIONS = ("gelu", "silu", "tanh")

_COUNTS = (
    ".embedding_length_out",
    ".attention.value_length_swa",
    ".rope.scaling.original_context_length",
    ".attention.sliding_window",
)
_NUMBERS = (
    ".rope.freq_base",
    ".rope.scaling.factor",
    ".rope.scale_linear",
    ".rope.scaling.attn_factor",
    ".rope.scaling.attn_factor_long",
    ".rope.scaling.alpha",
)
_EPSILONS = (
    ".attention.layer_norm_rms_epsilon",
    ".attention.layer_norm_epsilon",
    ".attention.group_norm_epsilon",
)
# Keys of one number or one for each layer; known graphs take the first layer's for all.
_UNIFORM = (
    ".feed_forward_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".expert_used_count",
)
_ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")
_FLAGS = (".attention.causal", ".rope.scaling.finetuned")


@dataclass(frozen=True)
class Known:
    """What is particular to an architecture whose graph is known here.

    Attributes:
        epsilon: the key of the one that its norms take.
        rotates_all: positions are put into whole heads, not into the front of them only.
        heads_fill_embedding: n_head heads together are as long as the embedding.
        n_expert_used: experts that each token goes to, where the graph has a fixed number.
    """

    epsilon: str = ".attention.layer_norm_rms_epsilon"
    rotates_all: bool = False
    heads_fill_embedding: bool = False
    n_expert_used: int | None = None


# Source: load_arch_hparams, load_arch_tensors and the assertions of the graphs in llama.cpp's
# src/models/<architecture>.cpp; for phi3 and phimoe, in csrc/arch.
KNOWN = {
    "phi2": Known(epsilon=".attention.layer_norm_epsilon", heads_fill_embedding=True),
    "phi3": Known(),
    "phimoe": Known(n_expert_used=2),
    "llama": Known(rotates_all=True),
    "qwen2": Known(rotates_all=True, heads_fill_embedding=True),
    "gemma": Known(),
}


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers from which the shapes of a known architecture's tensors follow."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_embd_head: int
    n_rot: int
    n_expert: int


def check_hyperparameters(metadata: CheckedMetadata, architecture: str) -> Hyperparameters | None:
    """Gathers the faults of the hyperparameters.

    Args:
        metadata: the model's.
        architecture: value of general.architecture.

    Returns:
        The numbers of a known architecture; None of another, or when there are faults.

    Source:
        llama_model_base::load_hparams in llama.cpp's llama-model.cpp.
    """
    before = len(metadata.faults)
    known = KNOWN.get(architecture)
    metadata.require(".context_length", ".embedding_length", ".block_count")
    if known is not None:
        metadata.require(".feed_forward_length", ".attention.head_count", known.epsilon)
    metadata.count(".context_length", least=1, most=_MOST)
    n_embd = metadata.count(".embedding_length", least=1, most=_MOST)
    n_layer = metadata.count(".block_count", least=1, most=MOST_LAYERS)
    _check_scalars(metadata)
    if n_layer is None or n_embd is None:
        return None
    nextn = metadata.count(".nextn_predict_layers")
    if nextn is not None and nextn > n_layer:
        metadata.fault(".nextn_predict_layers", f"is {nextn}, more than the {n_layer} layers")
    n_expert = _check_experts(metadata, architecture, n_layer)
    heads = _check_heads(metadata, n_layer, n_embd)
    n_ff = metadata.counts(".feed_forward_length", n_layer, most=_MOST)
    if known is None:
        return None
    for key in _UNIFORM:
        if len(set(metadata.counts(key, n_layer) or ())) > 1:
            metadata.fault(key, "differs between layers, which it cannot in this architecture")
    freq_base = metadata.number(".rope.freq_base")
    if freq_base is not None and freq_base <= 0:
        metadata.fault(".rope.freq_base", f"is {freq_base}: it must be positive")
    if len(metadata.faults) > before or heads is None or n_ff is None:
        return None
    n_head, n_head_kv = heads[0][0], heads[1][0]
    for key, number in (
        (".feed_forward_length", n_ff[0]),
        (".attention.head_count", n_head),
        (".attention.head_count_kv", n_head_kv),
    ):
        if number == 0:
            metadata.fault(key, "is 0: it must be at least 1")
    if len(metadata.faults) > before:
        return None
    _check_particular(metadata, known, n_layer)
    n_embd_head, n_rot = _known_head(metadata, known, n_embd, n_head=n_head)
    if len(metadata.faults) > before:
        return None
    return Hyperparameters(
        n_layer, n_embd, n_ff[0], n_head, n_head_kv, n_embd_head, n_rot, n_expert
    )


def _check_particular(metadata: CheckedMetadata, known: Known, n_layer: int) -> None:
    """What the graphs of csrc/arch read beyond what every architecture has."""
    metadata.count(".rope.scaling.original_context_length", least=1, most=_MOST)
    jitter = metadata.number(".router_jitter_noise")
    if jitter is not None and not 0 <= jitter < math.inf:
        metadata.fault(".router_jitter_noise", f"is {jitter}: it must be finite and not negative")
    for key in (".rope.scaling.attn_factor", ".rope.scaling.attn_factor_long"):
        factor = metadata.number(key)
        if factor is not None and factor <= 0:
            metadata.fault(key, f"is {factor}: it must be positive")
    if known.n_expert_used is None:
        return
    used = metadata.counts(".expert_used_count", n_layer)
    if used is None or used[0] != known.n_expert_used:
        metadata.fault(
            ".expert_used_count",
            f"is {'missing' if used is None else used[0]}: this architecture sends each token to "
            f"{known.n_expert_used} experts",
        )


def _check_scalars(metadata: CheckedMetadata) -> None:
    for key in _COUNTS:
        metadata.count(key, most=_MOST)
    for key in _NUMBERS:
        value = metadata.number(key)
        if value is not None and not math.isfinite(value):
            metadata.fault(key, f"is {value}: it must be finite")
    for key in _EPSILONS:
        value = metadata.number(key)
        if value is not None and not 0 <= value < math.inf:
            metadata.fault(key, f"is {value}: it must be finite and not negative")
    for key in _FLAGS:
        metadata.flag(key)
    metadata.count(".pooling_type", most=4)
    _check_choice(metadata, ".rope.scaling.type", _ROPE_SCALINGS)
    _check_choice(metadata, ".classifier.activation", _CLASSIFIER_ACTIVATIONS)


def _check_choice(metadata: CheckedMetadata, key: str, choices: tuple[str, ...]) -> None:
    value = metadata.text(key)
    if value is not None and value not in choices:
        metadata.fault(key, f"is {value[:40]!r}: it must be one of {', '.join(choices)}")


def _check_experts(metadata: CheckedMetadata, architecture: str, n_layer: int) -> int:
    """The number of experts, 0 without."""
    n_expert = metadata.count(".expert_count", most=MOST_EXPERTS)
    used = metadata.counts(".expert_used_count", n_layer)
    groups = metadata.count(".expert_group_count")
    group_used = metadata.count(".expert_group_used_count")
    if n_expert is None and metadata.has(".expert_count"):
        return 0  # and that is a fault already
    n_expert, n_used = n_expert or 0, max(used or (0,))
    if n_expert <= 1 and architecture in _ONE_EXPERT_IS_NONE:
        return 0
    if n_used > n_expert:
        metadata.fault(
            ".expert_used_count",
            f"is {n_used}: a token cannot use more experts than the {n_expert} that there are",
        )
    if (
        n_expert > 0
        and n_used == 0
        and (used is not None or not metadata.has(".expert_used_count"))
    ):
        metadata.fault(
            ".expert_used_count", f"is missing or 0: there are {n_expert} experts, and none is used"
        )
    if groups and (groups >= n_expert or n_expert % groups):
        metadata.fault(".expert_group_count", f"is {groups}: it must divide the {n_expert} experts")
    elif groups and groups > 1 and not 0 < (group_used or 0) < groups:
        metadata.fault(
            ".expert_group_used_count",
            f"is {group_used or 0}: it must be at least 1 and less than the {groups} groups",
        )
    return n_expert


Heads = tuple[tuple[int, ...], tuple[int, ...]]


def _check_heads(metadata: CheckedMetadata, n_layer: int, n_embd: int) -> Heads | None:
    """(heads of queries, heads of keys and values) of each layer."""
    key, key_kv = ".attention.head_count", ".attention.head_count_kv"
    n_head = metadata.counts(key, n_layer, most=_MOST)
    n_head_kv = metadata.counts(key_kv, n_layer, most=_MOST)
    length = metadata.count(".attention.key_length", least=1, most=_MOST)
    metadata.count(".attention.value_length", least=1, most=_MOST)
    if n_head is None:
        return None
    if n_head_kv is None and metadata.has(key_kv):
        return None
    n_head_kv = n_head if n_head_kv is None else n_head_kv
    before = len(metadata.faults)
    for q, kv in sorted({(q, kv) for q, kv in zip(n_head, n_head_kv, strict=True) if q and kv}):
        if q % kv != 0:
            metadata.fault(key_kv, f"is {kv}: it must divide {metadata.name(key)}, which is {q}")
            break
    if n_head[0] and n_embd % n_head[0] and not metadata.has(".attention.key_length"):
        metadata.fault(
            ".embedding_length",
            f"is {n_embd}, no multiple of the {n_head[0]} heads: without "
            f"{metadata.name('.attention.key_length')} it must be one",
        )
    if n_head[0]:
        _check_rotated(metadata, n_embd // n_head[0] if length is None else length)
    if len(metadata.faults) > before:
        return None
    return n_head, n_head_kv


def _check_rotated(metadata: CheckedMetadata, length: int) -> None:
    """Of a head of this length so much is rotated; of 0 upstream never comes to an end."""
    for suffix in ("", "_swa"):
        own = metadata.count(f".attention.key_length{suffix}", least=1, most=_MOST)
        length = length if own is None else own
        key = f".rope.dimension_count{suffix}"
        n_rot = metadata.count(key, most=_MOST)
        if n_rot is not None and (n_rot % 2 or not 2 <= n_rot <= length):
            metadata.fault(
                key, f"is {n_rot}: it must be even, and 2 to the length of a head, {length}"
            )


def _known_head(
    metadata: CheckedMetadata, known: Known, n_embd: int, *, n_head: int
) -> tuple[int, int]:
    """The length of a head, and how much of it is rotated."""
    default = n_embd // n_head
    key = metadata.count(".attention.key_length", least=1, most=_MOST)
    value = metadata.count(".attention.value_length", least=1, most=_MOST)
    key, value = default if key is None else key, default if value is None else value
    n_rot = metadata.count(".rope.dimension_count", most=_MOST)
    n_rot = key if n_rot is None else n_rot
    if key != value:
        metadata.fault(
            ".attention.key_length",
            f"is {key}: it must be {metadata.name('.attention.value_length')}, which is {value}",
        )
    elif known.heads_fill_embedding and key * n_head != n_embd:
        metadata.fault(
            ".attention.key_length",
            f"is {key}: {n_head} heads of it must make {metadata.name('.embedding_length')}, "
            f"which is {n_embd}",
        )
    if known.rotates_all and n_rot != key:
        metadata.fault(
            ".rope.dimension_count", f"is {n_rot}: it must be the length of a head, {key}"
        )
    elif not 2 <= n_rot <= key or n_rot % 2:
        metadata.fault(
            ".rope.dimension_count",
            f"is {n_rot}: it must be even, and 2 to the length of a head, {key}",
        )
    return key, n_rot
