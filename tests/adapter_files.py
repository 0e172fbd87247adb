"""Adapters and control vectors for small models, and the models that an adapter is merged into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg

Array = npt.NDArray[np.float32]
Pairs = Mapping[str, tuple[Array, Array]]
"""Tensor of the model -> A [..., rank, inputs] and B [..., outputs, rank]."""

EMBEDDING = "token_embd.weight"


def random_pairs(model: Path, names: Iterable[str] | None = None, *, seed: int = 1) -> Pairs:
    """Changes of a model's matrices about as large as the matrices, each of another rank."""
    random = np.random.default_rng(seed)
    pairs = {}
    with pg.GGUFFile(model) as file:
        for number, tensor in enumerate(file.tensors.values()):
            if len(tensor.shape) < 2 or (names is not None and tensor.name not in names):
                continue
            rank = 1 + number % 5
            *experts, n_out, n_in = tensor.shape
            size = np.sqrt(tensor.dequantize().std())
            a = random.normal(0, size, (*experts, rank, n_in))
            b = random.normal(0, size / np.sqrt(rank), (*experts, n_out, rank))
            pairs[tensor.name] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def lora_metadata(architecture: str, alpha: float = 3.0) -> dict[str, Any]:
    return {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(alpha),
    }


def lora_tensors(pairs: Pairs) -> dict[str, Array]:
    """As llama.cpp wants them: an embedding's A has a row for each token."""
    tensors = {}
    for name, (a, b) in pairs.items():
        if name == EMBEDDING:
            a, b = np.ascontiguousarray(b), np.ascontiguousarray(a.T)
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    return tensors


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Array], type: str | None = None
) -> Path:
    with pg.GGUFWriter(path, overwrite=True) as writer:
        for key, value in metadata.items():
            writer.metadata[key] = value
        for name, values in tensors.items():
            writer.add_tensor(name, values, type=type)
    return path


def write_lora(path: Path, architecture: str, pairs: Pairs, *, alpha: float = 3.0) -> Path:
    return write_gguf(path, lora_metadata(architecture, alpha), lora_tensors(pairs))


def merged(model: Path, path: Path, changes: Iterable[tuple[Pairs, float]]) -> Path:
    """The model with each W + scale / rank * B @ A, computed in float64; scale includes alpha."""
    with pg.GGUFFile(model) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata.exact(key)
        for name, tensor in file.tensors.items():
            values = tensor.dequantize().astype(np.float64)
            for pairs, scale in changes:
                if name in pairs:
                    a, b = (part.astype(np.float64) for part in pairs[name])
                    values = values + scale / b.shape[-1] * (b @ a)
            writer.add_tensor(name, values.astype(np.float32))
    return path
