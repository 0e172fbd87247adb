"""An architecture as data: which tensors a checkpoint and a GGUF file hold, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from phiggml.conversion.fields import Fields

__all__ = [
    "Architecture",
    "CheckpointConfig",
    "ConfigWriter",
    "Form",
    "LeftOut",
    "ModelConfig",
    "TensorRule",
    "expanded",
]

EXPERT = "{expert}"


@dataclass(frozen=True)
class Form:
    """One way in which checkpoints store what becomes one tensor.

    Args:
        name: in the checkpoint; with `{layer}`, and with `{expert}` where each expert has a tensor
            of its own: they are stacked.
        part: which of `parts` equal parts of the rows, where the checkpoint keeps several tensors
            in one (of each expert, where it holds experts).
        parts: how many there are.
    """

    name: str
    part: int = 0
    parts: int = 1

    def names(self, layer: int, experts: int) -> tuple[str, ...]:
        """The tensors of one layer that together are this form."""
        if EXPERT not in self.name:
            return (self.name.format(layer=layer),)
        return tuple(self.name.format(layer=layer, expert=expert) for expert in range(experts))


@dataclass(frozen=True)
class TensorRule:
    """One tensor, or one per layer where the names hold `{layer}`.

    Args:
        source: the name in the checkpoint; see Form.
        target: the name in the GGUF file.
        shape: dimension names (see ModelConfig.dimensions), numpy order; "experts" comes first.
        float32: stored as F32 whatever the checkpoint holds (norms, biases, all 1-D tensors).
        optional_if: the name of a condition of ModelConfig under which the source may be absent.
        only_if: the name of a condition without which the tensor does not exist.
        tied_to: the checkpoint's tensor that is used once more where the source may be and is
            absent; None leaves the target away.
        others: further forms in which the checkpoint may store it instead.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    float32: bool = False
    optional_if: str | None = None
    only_if: str | None = None
    tied_to: str | None = None
    others: tuple[Form, ...] = ()

    @property
    def forms(self) -> tuple[Form, ...]:
        return (Form(self.source), *self.others)

    def is_needed(self, conditions: Mapping[str, bool]) -> bool:
        return self.optional_if is None or not conditions[self.optional_if]


@dataclass(frozen=True)
class LeftOut:
    """Tensors that have no place in the GGUF file and are named in the plan's notes.

    Args:
        what: they are, as a phrase.
        pattern: of their names (fullmatch).
    """

    what: str
    pattern: str


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says, in the words of the GGUF file.

    Args:
        dimensions: sizes by name, for the shapes of TensorRule; "layers" is the number of layers.
        conditions: true or false by name, for TensorRule.optional_if and only_if.
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


ConfigWriter: TypeAlias = Callable[[Fields, Mapping[str, tuple[float, ...]], int], CheckpointConfig]


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
            CheckpointConfig, adding faults likewise; None where nothing is exported.
        aliases: other class names and model types of the same.
        left_out: parts of the checkpoint that the GGUF file does not hold.
    """

    name: str
    model_type: str
    gguf_name: str
    rules: tuple[TensorRule, ...]
    vectors: tuple[str, ...]
    ignored: tuple[str, ...]
    read_config: Callable[[Fields], ModelConfig]
    write_config: ConfigWriter | None = None
    aliases: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def expanded(rules: tuple[TensorRule, ...], layers: int) -> Iterator[tuple[TensorRule, int]]:
    """Yields (rule, layer) with the rules of a layer together, once for each layer."""
    index = 0
    while index < len(rules):
        if "{layer}" not in rules[index].target:
            yield rules[index], 0
            index += 1
            continue
        end = index
        while end < len(rules) and "{layer}" in rules[end].target:
            end += 1
        for layer in range(layers):
            for rule in rules[index:end]:
                yield rule, layer
        index = end
