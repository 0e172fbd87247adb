"""The plan of an export: every tensor and file of the checkpoint, known before one is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.conversion.architecture import Architecture, ConfigWriter, expanded
from phiggml.conversion.export_documents import (
    encode_json,
    generation_config,
    model_card,
    tokenizer_documents,
    weight_index,
)
from phiggml.conversion.export_tokenizer import export_tokenizer
from phiggml.conversion.family import ARCHITECTURES
from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import Fields
from phiggml.conversion.safetensors import encode_header, tensor_bytes
from phiggml.errors import InputError, UnsupportedError
from phiggml.gguf_value import GGUFStrings, GGUFValue
from phiggml.quant import QuantType, dequantize
from phiggml.source import SourceModel, SourceTensor

__all__ = ["ExportPlan", "ExportedTensor", "plan_export"]

# What safetensors and GGUF call a dtype, and what config.json does.
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_MOST_SHARDS = 256
_MOST_FACTORS = 1 << 16
_TECHNICAL = re.compile(
    r"general\.(alignment|architecture|file_type|quantization_version|type)"
    r"|phiggml\.padding|split\.(count|no|tensors\.count)"
)
_NOT_KEPT = (
    "GGUF keeps neither dropout, initializer_range and do_sample, nor the flags lstrip, "
    "normalized and single_word of added tokens, nor code and documents beside the model: "
    "readers' defaults stand in."
)


@dataclass(frozen=True)
class ExportedTensor:
    """One tensor of the checkpoint.

    Attributes:
        name: in the checkpoint.
        shape: in numpy order.
        dtype: BF16, F16 or F32.
        file: the file that it goes to.
        source: its name in the GGUF file.
        source_type: its type there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    source: str
    source_type: str

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return tensor_bytes(self.dtype, self.shape)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        origin = f"{self.source} {self.source_type}"
        return f"{self.name:48} {shape:>14} {self.dtype:4} {self.file} <- {origin}"


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write; str() is a table.

    Attributes:
        architecture: the class in transformers.
        dtype: of the weights.
        tensors: file after file, each in the order of its data.
        documents: the other files: name -> bytes, config.json last.
        notes: what is left out or decided, as sentences.
    """

    architecture: str
    dtype: str
    tensors: tuple[ExportedTensor, ...]
    documents: Mapping[str, bytes]
    notes: tuple[str, ...]

    @property
    def shards(self) -> dict[str, tuple[ExportedTensor, ...]]:
        """The files of weights and what each of them holds."""
        shards: dict[str, list[ExportedTensor]] = {}
        for tensor in self.tensors:
            shards.setdefault(tensor.file, []).append(tensor)
        return {file: tuple(tensors) for file, tensors in shards.items()}

    @property
    def files(self) -> dict[str, int]:
        """Every file and its size in bytes, in the order in which they appear."""
        sizes = {
            file: len(header_of(tensors)) + sum(tensor.nbytes for tensor in tensors)
            for file, tensors in self.shards.items()
        }
        return {**sizes, **{name: len(data) for name, data in self.documents.items()}}

    def __str__(self) -> str:
        files = self.files
        head = f"{self.architecture}: {len(self.tensors)} tensors, {len(files)} files"
        listed = [f"{name:48} {nbytes:>14,} bytes" for name, nbytes in files.items()]
        return "\n".join([head, *map(str, self.tensors), *listed, *self.notes])


def header_of(tensors: Iterable[ExportedTensor]) -> bytes:
    """What stands in a file of weights before the data."""
    return encode_header((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)


@dataclass(frozen=True)
class _Match:
    """A tensor of the file and its place in the checkpoint."""

    name: str
    tensor: SourceTensor
    is_weight: bool


class _ReadKeys(Mapping[str, Any]):
    """Metadata that remember which keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {k: v.value if isinstance(v, GGUFValue) else v for k, v in values.items()}
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        self.read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def plan_export(source: SourceModel, *, dtype: str | None, max_shard_bytes: int) -> ExportPlan:
    """Plans the export of a GGUF model; nothing is written, and of the weights only norms are read.

    Args:
        source: the model.
        dtype: of the weights, any case; None means BF16, unless all of them are F32 or F16.
        max_shard_bytes: what would make a file of weights greater than this begins another one.

    Raises:
        FormatError: metadata, vocabulary or tensors are not those of a model; all faults together.
        InputError: an unknown dtype, or more files than anybody wants.
        UnsupportedError: the architecture or the tokenizer is not exported here.
    """
    path = source.paths[0]
    architecture, write_config = _architecture(source, path)
    faults = Faults("export")
    values = _ReadKeys(source.metadata)
    metadata = Fields(values, path, faults)
    tensors = {tensor.name: tensor for tensor in source.tensors}
    embedding = tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding else 1
    vectors = _vectors(architecture, tensors, metadata)
    config = write_config(metadata, vectors, rows)
    matches = []
    # Wrong sizes would only make every tensor look wrong.
    if not faults.sentences:
        tokens = values.get("tokenizer.ggml.tokens")
        size = len(tokens) if isinstance(tokens, GGUFStrings) else rows
        matches = _matched(
            architecture, {**config.dimensions, "vocabulary": size}, tensors, metadata
        )
    tokenizer = export_tokenizer(metadata)
    if tokenizer is None or faults.sentences:
        raise faults.error(path)
    chosen = _chosen_dtype(dtype, matches)
    placed = _placed(matches, chosen, max_shard_bytes)
    card, not_in_card = model_card(values, _origin(path, matches, chosen))
    fields = {
        **config.fields,
        **tokenizer.ids,
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _DTYPES[chosen],
        "vocab_size": rows,
    }
    documents = {
        **tokenizer_documents(tokenizer, config.fields["max_position_embeddings"]),
        "generation_config.json": generation_config(tokenizer, values),
        "README.md": card,
        **_index(placed),
        "config.json": encode_json(fields),
    }
    unread = {key for key in values.keys() - values.read if not _TECHNICAL.fullmatch(key)}
    notes = _notes(matches, placed, chosen, left_out=sorted(unread | not_in_card))
    return ExportPlan(architecture.name, chosen, placed, MappingProxyType(documents), notes)


def _architecture(source: SourceModel, path: Path) -> tuple[Architecture, ConfigWriter]:
    known = []
    for architecture in ARCHITECTURES:
        if architecture.write_config is None:
            continue
        if source.architecture == architecture.gguf_name:
            return architecture, architecture.write_config
        known.append(f"{architecture.gguf_name!r} ({architecture.name})")
    raise UnsupportedError(
        f"export: {path}: architecture {source.architecture!r} cannot be exported. "
        f"These can: {', '.join(known)}."
    )


def _vectors(
    architecture: Architecture, tensors: Mapping[str, SourceTensor], metadata: Fields
) -> dict[str, tuple[float, ...]]:
    """The values of tensors that belong into config.json."""
    vectors: dict[str, tuple[float, ...]] = {}
    for name in architecture.vectors:
        tensor = tensors.get(name)
        if tensor is None:
            continue
        fits = len(tensor.shape) == 1 and 1 <= tensor.shape[0] <= _MOST_FACTORS
        if not fits or not _is_float(tensor):
            metadata.faults.add(
                metadata.path,
                f"tensor {name!r} is {tensor.type} of shape {tensor.shape}; "
                f"up to {_MOST_FACTORS} fractions in one row are needed.",
            )
        else:
            vectors[name] = tuple(float(value) for value in _numbers(tensor))
    return vectors


def _is_float(tensor: SourceTensor) -> bool:
    return QuantType(tensor.type).can_dequantize


def _numbers(tensor: SourceTensor) -> npt.NDArray[np.float32]:
    """All numbers of a tensor of one row."""
    numbers: npt.NDArray[np.float32] = dequantize(tensor.read(0, 1), tensor.type)[0]
    return numbers


def _matched(
    architecture: Architecture,
    dimensions: Mapping[str, int],
    tensors: Mapping[str, SourceTensor],
    metadata: Fields,
) -> list[_Match]:
    """Gives every tensor of the file its place, or says what prevents it."""

    def fault(sentence: str) -> None:
        metadata.faults.add(metadata.path, f"tensor {sentence}")

    matches = []
    placed = set(architecture.vectors)
    for rule, layer in expanded(architecture.rules, dimensions["layers"]):
        name, target = rule.source.format(layer=layer), rule.target.format(layer=layer)
        placed.add(target)
        tensor = tensors.get(target)
        if tensor is None:
            if rule.optional_if is None:
                fault(f"{target!r} is missing.")
            continue
        matches.append(_Match(name, tensor, not rule.float32))
        if tensor.shape != tuple(dimensions[size] for size in rule.shape):
            expected = ", ".join(f"{size} {dimensions[size]}" for size in rule.shape)
            fault(f"{target!r} has shape {tensor.shape}; the metadata say ({expected}).")
        if not _is_float(tensor):
            fault(f"{target!r} is stored as {tensor.type}, which holds no fractions.")
    for name in sorted(tensors.keys() - placed):
        fault(f"{name!r} has no place in {architecture.name}.")
    return matches


def _chosen_dtype(dtype: str | None, matches: Sequence[_Match]) -> str:
    if dtype is None:
        types = {match.tensor.type for match in matches if match.is_weight}
        return next((name for name in ("F32", "F16") if types == {name}), "BF16")
    if not isinstance(dtype, str) or dtype.upper() not in _DTYPES:
        raise InputError(f"export: dtype {dtype!r} is none of {', '.join(_DTYPES)}.")
    return dtype.upper()


def _holds(dtype: str, numbers: npt.NDArray[np.float32]) -> bool:
    """Whether every number is one of the dtype's."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return bool(np.array_equal(numbers.astype(np.float16).astype(np.float32), numbers))
    # bf16 is the upper half of float32.
    return dtype == "F32" or not np.any(numbers.view(np.uint32) & 0xFFFF)


def _placed(
    matches: Sequence[_Match], dtype: str, max_shard_bytes: int
) -> tuple[ExportedTensor, ...]:
    """Tensors with their dtypes and files.

    Norms, which GGUF keeps in F32, stay F32 where the dtype would round them.
    """
    if type(max_shard_bytes) is not int or max_shard_bytes < 1:
        raise InputError(
            f"export: max_shard_bytes {max_shard_bytes!r}: it must be a number of bytes above 0."
        )
    shards: list[list[tuple[_Match, str]]] = [[]]
    filled = 0
    for match in matches:
        exact = match.is_weight or _holds(dtype, _numbers(match.tensor))
        kind = dtype if exact else "F32"
        nbytes = tensor_bytes(kind, match.tensor.shape)
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((match, kind))
        filled += nbytes
    if len(shards) > _MOST_SHARDS:
        raise InputError(
            f"export: max_shard_bytes {max_shard_bytes}: makes {len(shards)} files; "
            f"{_MOST_SHARDS} are enough. Allow larger ones."
        )
    placed = []
    for i, shard in enumerate(shards, 1):
        single = len(shards) == 1
        file = (
            f"model-{i:05}-of-{len(shards):05}.safetensors" if not single else "model.safetensors"
        )
        # The wider dtype first, so that each tensor begins at a multiple of its elements' size.
        for match, kind in sorted(shard, key=lambda entry: entry[1] != "F32"):
            tensor = match.tensor
            placed.append(
                ExportedTensor(match.name, tensor.shape, kind, file, tensor.name, tensor.type)
            )
    return tuple(placed)


def _index(placed: Sequence[ExportedTensor]) -> dict[str, bytes]:
    files = {tensor.name: tensor.file for tensor in placed}
    if len(set(files.values())) == 1:
        return {}
    nbytes = sum(tensor.nbytes for tensor in placed)
    return {"model.safetensors.index.json": weight_index(files, nbytes)}


def _lossy(types: Iterable[str]) -> str:
    return ", ".join(sorted({str(type) for type in types} - _DTYPES.keys()))


def _origin(path: Path, matches: Sequence[_Match], dtype: str) -> str:
    """What the model card says about the weights."""
    lossy = _lossy(match.tensor.type for match in matches)
    name = path.name if path.name.isprintable() else "a GGUF file"
    loss = f" Its weights were of type {lossy}; what that rounded away stays lost." if lossy else ""
    return f"Exported from {name} by phiggml, with weights as {_DTYPES[dtype]}.{loss}"


def _notes(
    matches: Sequence[_Match],
    placed: Sequence[ExportedTensor],
    dtype: str,
    *,
    left_out: Sequence[str],
) -> tuple[str, ...]:
    notes = []
    if lossy := _lossy(match.tensor.type for match in matches):
        notes.append(f"Dequantized from {lossy}: what those rounded away stays lost.")
    if dtype != "F32" and any(match.is_weight and match.tensor.type != dtype for match in matches):
        notes.append(f"Weights are rounded to {dtype}, to nearest even.")
    if kept := sum(tensor.dtype != dtype for tensor in placed):
        notes.append(f"{kept} norms stay F32: {dtype} would round them.")
    if left_out:
        notes.append(f"No place in a checkpoint: {', '.join(left_out)}.")
    return (*notes, _NOT_KEPT)
