"""Whether a GGUF file is a LoRA adapter of a model: checked before llama.cpp sees the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from phiggml.errors import UnsupportedError
from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.gguf_text import one_line, shown_value
from phiggml.model import Model
from phiggml.model_check_metadata import CheckedMetadata, ModelFaults
from phiggml.quant import dequantize

__all__ = ["CheckedLora", "check_container", "check_lora", "is_finite"]

MOST_HEADER = 32 << 20
"""Bytes of an adapter's header; llama.cpp writes all of its values out as text."""

_SUFFIXES = (".lora_a", ".lora_b")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"

_NO_FACTORS = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
"""Types with which the CPU's products end the process."""

_TABLES = ("position_embd.weight", "token_types.weight")
"""Rows that are looked up and added: llama.cpp passes over a change of them in silence."""

_PIECE_NUMBERS = 1 << 22


@dataclass(frozen=True)
class CheckedLora:
    """What an adapter's file holds.

    Args:
        alpha: what each product B @ A is multiplied by, after it is divided by its rank; 0 where
            products count as they are.
        ranks: tensor of the model -> rank of its change.
    """

    alpha: float
    ranks: Mapping[str, int]


def check_lora(file: GGUFFile, model: Model) -> CheckedLora:
    """Checks an adapter for all that llama.cpp aborts on, misreads or passes over.

    Args:
        file: the adapter.
        model: the model that it is to change.

    Raises:
        FormatError: it is no adapter, a damaged one, or one of another model: all faults together.
        UnsupportedError: it asks for what is not done here.

    Cost:
        Reads all numbers once.

    Source:
        llama_adapter_lora_init_impl in llama.cpp's llama-adapter.cpp; build_lora_mm,
        build_lora_mm_id, build_inp_embd and build_ffn in its llama-graph.cpp, b11549.
    """
    check_container(file, "lora")
    faults = _Faults("lora", file.path)
    if file.header_end > MOST_HEADER:
        faults.add("the file", f"has a header of {file.header_end} bytes")
    faults.raise_if_any()
    alpha = _checked_alpha(file, model, faults)
    faults.raise_if_any()
    pairs = _paired(file, faults)
    placed = set(model.placement)
    for target, (a, b) in pairs.items():
        tensor = model._file.tensors.get(target)
        if tensor is None or target not in placed:
            faults.add(one_line(target), "is no tensor of the model")
        else:
            _check_pair(tensor, a, b, faults=faults)
    faults.raise_if_any()
    _require_supported(file, model, pairs)
    return CheckedLora(alpha, {name: b.shape[-1] for name, (_, b) in pairs.items()})


def check_container(file: GGUFFile, operation: str) -> None:
    """Raises what keeps llama.cpp, or whoever reads as it does, from reading a file.

    Raises:
        UnsupportedError: numbers are big-endian, or the version is 1.
    """
    if file.byte_order == "big" or file.version < 2:
        what = "its numbers are big-endian" if file.version > 1 else "it is GGUF version 1"
        raise UnsupportedError(f"{operation}: {file.path}: {what}. Write it anew as version 3.")


def is_finite(tensor: GGUFTensor) -> bool:
    """Whether all numbers of a tensor are finite; reads it in pieces."""
    step = max(1, _PIECE_NUMBERS // tensor.shape[-1])
    for start in range(0, tensor.n_rows, step):
        rows = tensor.read_rows(start, min(start + step, tensor.n_rows))
        if not np.isfinite(dequantize(rows, tensor.type)).all():
            return False
    return True


class _Faults(ModelFaults):
    """Whose remedy is not that of a model."""

    def add(self, where: str, rule: str, remedy: str = "") -> None:
        super().add(where, rule, remedy="Pass an adapter of this model, or convert it anew.")


def _checked_alpha(file: GGUFFile, model: Model, faults: ModelFaults) -> float:
    """The file's alpha, once it says that it is an adapter of the model's architecture."""
    metadata = CheckedMetadata(file, "", faults)
    architecture = model.metadata.get("general.architecture")
    wanted = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": architecture,
    }
    for key, value in wanted.items():
        found = metadata.text(key)
        if not metadata.has(key):
            metadata.fault(key, f"is missing: it must be {value!r}")
        elif found is not None and found != value:
            metadata.fault(key, f"is {shown_value(found)}: it must be {value!r}")
    alpha = metadata.number("adapter.lora.alpha")
    if alpha is not None and not math.isfinite(alpha):
        metadata.fault("adapter.lora.alpha", f"is {alpha}: it must be finite")
    return alpha or 0.0


def _paired(file: GGUFFile, faults: ModelFaults) -> dict[str, tuple[GGUFTensor, GGUFTensor]]:
    """Tensor of the model -> its A and B."""
    pairs = {}
    for name, tensor in file.tensors.items():
        target, suffix = name[:-7], name[-7:]
        if suffix not in _SUFFIXES or not target or any(part in target for part in _SUFFIXES):
            faults.add(one_line(name), "is no lora_a or lora_b of a tensor")
            continue
        other = _SUFFIXES[1 - _SUFFIXES.index(suffix)]
        if target + other not in file.tensors:
            faults.add(one_line(name), f"has no {other[1:]} beside it")
        elif suffix == ".lora_a":
            pairs[target] = (tensor, file.tensors[target + other])
    if not file.tensors:
        faults.add("the file", "has no tensors")
    return pairs


def _check_pair(tensor: GGUFTensor, a: GGUFTensor, b: GGUFTensor, *, faults: ModelFaults) -> None:
    """B @ A must have the tensor's shape, for each expert where it has those."""
    name = tensor.name
    rank = b.shape[-1]
    *experts, n_out, n_in = tensor.shape if len(tensor.shape) > 1 else (0, 0)
    wanted_a, wanted_b = (*experts, rank, n_in), (*experts, n_out, rank)
    if name == _EMBEDDING:  # whose A has a row for each token
        wanted_a, wanted_b = (n_out, rank), (n_in, rank)
    if len(tensor.shape) not in (2, 3) or name in _TABLES:
        faults.add(name, "is not multiplied: an adapter cannot change it")
    elif name != _EMBEDDING and name.endswith(_EMBEDDING):
        faults.add(one_line(name), "is not the embedding: llama.cpp would take it for it")
    elif a.shape != wanted_a or b.shape != wanted_b:
        faults.add(
            one_line(name),
            f"has shape {list(tensor.shape)}: lora_a {list(a.shape)} and lora_b {list(b.shape)} "
            "do not fit it",
        )
    else:
        for part in (a, b):
            if part.type in _NO_FACTORS:
                faults.add(part.name, f"is {part.type}: ggml multiplies with no such tensor")
            elif not is_finite(part):
                faults.add(part.name, "holds NaN or infinity")


def _require_supported(
    file: GGUFFile, model: Model, pairs: Mapping[str, tuple[GGUFTensor, GGUFTensor]]
) -> None:
    for sentence in _unsupported(file, model, pairs):
        raise UnsupportedError(f"lora: {file.path}: {sentence}")


def _unsupported(
    file: GGUFFile, model: Model, pairs: Mapping[str, tuple[GGUFTensor, GGUFTensor]]
) -> Iterator[str]:
    if "adapter.alora.invocation_tokens" in file.metadata:
        yield (
            "it is an activated LoRA, which changes only what follows its invocation tokens; here "
            "an adapter changes whole sequences. Merge it, or use a plain one."
        )
    tensors = model._file.tensors
    if _EMBEDDING in pairs and _OUTPUT not in tensors:
        yield (
            "it changes token_embd.weight, which is the model's output, too; llama.cpp would turn "
            "the change wrongly there. Merge the adapter into the model."
        )
    for name in pairs:
        if tensors[name].type == "NVFP4":
            yield f"it changes {name}, which is NVFP4. Use a model of another type."
