"""Adapter tensors by module: the names that PEFT writes, taken apart and paired."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from phiggml.conversion.faults import Faults
from phiggml.conversion.safetensors import StoredTensor
from phiggml.errors import UnsupportedError

__all__ = ["AdaptedModule", "adapted_modules"]

_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight", re.DOTALL)
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])(?:\.([^.]+))?", re.DOTALL)
_FLOAT_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class AdaptedModule:
    """What a LoRA adds to one module of the base: the product B @ A.

    Args:
        name: of the module, as in the base: "model.layers.0.self_attn.qkv_proj".
        a: float[rank, inputs].
        b: float[outputs, rank].
        embedding: whether it is an embedding's: then A has a column for each token.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    embedding: bool

    @property
    def parameters_of(self) -> str:
        """The module whose parameters it changes, where PEFT has wrapped it more than once."""
        name = self.name
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        return name


@dataclass
class _Half:
    """The matrices of a module that have been seen."""

    embedding: bool
    a: StoredTensor | None = None
    b: StoredTensor | None = None


def adapted_modules(
    stored: Mapping[str, StoredTensor], faults: Faults
) -> tuple[tuple[AdaptedModule, ...], Mapping[str, StoredTensor]]:
    """Pairs the A and B of each module.

    Args:
        stored: the adapter's tensors by name.
        faults: receives what is unpaired, doubled, or of no matrix.

    Returns:
        The modules in the order of the file; and all tensors that are no half of a LoRA, by their
        name in the base.

    Raises:
        UnsupportedError: the file holds several adapters.
    """
    halves: dict[str, _Half] = {}
    others: dict[str, StoredTensor] = {}
    adapters: set[str] = set()
    for name, tensor in stored.items():
        plain = name.removeprefix(_PREFIX)
        linear, embedding = _LINEAR.fullmatch(plain), _EMBEDDING.fullmatch(plain)
        found = linear or embedding
        if found is None:
            others[plain] = tensor
            continue
        module, which, adapter = found.groups()
        adapters.add(adapter or "")
        half = halves.setdefault(module, _Half(linear is None))
        if half.embedding != (linear is None) or getattr(half, which.lower()) is not None:
            faults.add(tensor.path, f"tensor {name!r}: module {module!r} has a {which} already.")
            continue
        setattr(half, which.lower(), tensor)
        _check(tensor, faults)
    if len(adapters) > 1:
        names = ", ".join(repr(name) for name in sorted(adapters))
        path = next(iter(stored.values())).path
        raise UnsupportedError(
            f"convert-lora: {path}: holds several adapters ({names}). Save each in a folder of its "
            "own: PeftModel.save_pretrained(folder, selected_adapters=[name])."
        )
    return tuple(_paired(halves, faults)), others


def _paired(halves: Mapping[str, _Half], faults: Faults) -> list[AdaptedModule]:
    modules = []
    for module, half in halves.items():
        if half.a is not None and half.b is not None:
            modules.append(AdaptedModule(module, half.a, half.b, half.embedding))
            continue
        present = half.a or half.b
        if present is not None:
            missing = "A" if half.a is None else "B"
            faults.add(present.path, f"tensor {present.name!r}: the {missing} to it is missing.")
    return modules


def _check(tensor: StoredTensor, faults: Faults) -> None:
    if tensor.dtype not in _FLOAT_DTYPES:
        faults.add(
            tensor.path,
            f"tensor {tensor.name!r} is stored as {tensor.dtype}; "
            f"{', '.join(_FLOAT_DTYPES)} can be converted.",
        )
