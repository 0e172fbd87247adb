"""An architecture as data: which tensors a checkpoint holds and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phiggml.conversion.fields import Fields

__all__ = ["Architecture", "ModelConfig", "TensorRule"]


@dataclass(frozen=True)
class TensorRule:
    """One tensor, or one per layer where the names hold `{layer}`.

    Args:
        source: the name in the checkpoint.
        target: the name in the GGUF file.
        shape: dimension names (see ModelConfig.dimensions), numpy order.
        float32: stored as F32 whatever the checkpoint holds (norms, biases, all 1-D tensors).
        optional_if: the name of a condition of ModelConfig under which the source may be absent.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    float32: bool = False
    optional_if: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says, in the words of the GGUF file.

    Args:
        dimensions: sizes by name, for the shapes of TensorRule; "layers" is the number of layers.
        conditions: true or false by name, for TensorRule.optional_if.
        metadata: GGUF keys and values.
        vectors: tensors that come from config.json itself, by GGUF name.
    """

    dimensions: Mapping[str, int]
    conditions: Mapping[str, bool]
    metadata: Mapping[str, Any]
    vectors: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Architecture:
    """How one class of transformers becomes one architecture of llama.cpp.

    Args:
        name: the class, as config.json names it under "architectures".
        model_type: what config.json names it under "model_type".
        gguf_name: general.architecture.
        rules: every tensor.
        ignored: patterns (fullmatch) of source names that carry no weights, such as saved buffers.
        read_config: turns config.json into a ModelConfig, adding faults where it is wrong.
    """

    name: str
    model_type: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    ignored: tuple[str, ...]
    read_config: Callable[[Fields], ModelConfig]
