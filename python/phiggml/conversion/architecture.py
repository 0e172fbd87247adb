"""An architecture as data: which tensors a checkpoint and a GGUF file hold, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phiggml.conversion.fields import Fields

__all__ = ["Architecture", "CheckpointConfig", "ModelConfig", "TensorRule", "expanded"]


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
class CheckpointConfig:
    """What a GGUF file's metadata say, in the words of config.json.

    Args:
        dimensions: sizes by name, for the shapes of TensorRule.
        fields: of config.json, without those that every architecture has alike (class, model
            type, dtype, rows of the embedding, ids of tokens).
    """

    dimensions: Mapping[str, int]
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How one class of transformers becomes one architecture of llama.cpp, and back.

    Args:
        name: the class, as config.json names it under "architectures".
        model_type: what config.json names it under "model_type".
        gguf_name: general.architecture.
        rules: every tensor.
        vectors: names of the GGUF file's tensors that config.json holds as lists.
        ignored: patterns (fullmatch) of source names that carry no weights, such as saved buffers.
        read_config: turns config.json into a ModelConfig, adding faults where it is wrong.
        write_config: turns GGUF metadata, those vectors, and the rows of the embedding into a
            CheckpointConfig, adding faults likewise.
    """

    name: str
    model_type: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    vectors: tuple[str, ...]
    ignored: tuple[str, ...]
    read_config: Callable[[Fields], ModelConfig]
    write_config: Callable[[Fields, Mapping[str, tuple[float, ...]], int], CheckpointConfig]


def expanded(rules: tuple[TensorRule, ...], layers: int) -> Iterator[tuple[TensorRule, str, str]]:
    """Yields (rule, source, target) with the rules of a layer together, once for each layer."""
    index = 0
    while index < len(rules):
        if "{layer}" not in rules[index].target:
            yield rules[index], rules[index].source, rules[index].target
            index += 1
            continue
        end = index
        while end < len(rules) and "{layer}" in rules[end].target:
            end += 1
        for layer in range(layers):
            for rule in rules[index:end]:
                yield rule, rule.source.format(layer=layer), rule.target.format(layer=layer)
        index = end
