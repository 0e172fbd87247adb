"""The plan of a conversion: every tensor and key of the GGUF file, known from headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.conversion.architecture import Architecture, ModelConfig, expanded
from phiggml.conversion.checkpoint import Checkpoint
from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import Fields
from phiggml.conversion.general import general_metadata
from phiggml.conversion.jsonfile import read_object
from phiggml.conversion.phi3 import PHI3
from phiggml.conversion.safetensors import StoredTensor
from phiggml.conversion.special_tokens import special_token_metadata
from phiggml.conversion.vocabulary import Vocabulary
from phiggml.errors import FormatError, UnsupportedError

__all__ = ["ConversionPlan", "PlannedTensor", "plan_conversion"]

ARCHITECTURES = (PHI3,)
_FLOAT_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file before quantization.

    Args:
        name: in the GGUF file.
        shape: numpy order.
        type: what is handed to the quantizer: BF16, F16 or F32.
        source: the checkpoint's tensor, or None where config.json itself holds the values.
        values: those values.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    source: StoredTensor | None
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        if self.source is None:
            origin = "config.json"
        else:
            origin = f"{self.source.path.name}: {self.source.name} {self.source.dtype}"
        return f"{self.name:32} {shape:>16} {self.type:5} <- {origin}"


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write; `str(plan)` is a table.

    Args:
        folder: the checkpoint.
        architecture: of the GGUF file.
        metadata: GGUF keys and values, without general.file_type and quantization_version.
        tensors: in the order of the file.
        notes: what was left out or decided, as sentences.
    """

    folder: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]
    checkpoint: Checkpoint

    def __str__(self) -> str:
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        counts = f"{len(self.tensors)} tensors, {elements} elements"
        head = f"{self.folder} -> {self.architecture}: {counts}"
        lines = [head, *map(str, self.tensors), *map(_metadata_line, self.metadata.items())]
        return "\n".join([*lines, *self.notes])

    @property
    def source_files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.checkpoint.files.values())

    def read(self, tensor: PlannedTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of a tensor in its planned type: uint8[stop - start, row_bytes].

        Cost:
            A view over the mapped file, except where BF16 or F16 become F32.
        """
        if tensor.source is None:
            row = np.asarray([tensor.values], dtype="<f4").view(np.uint8)
            return row[start:stop]
        stored = tensor.source
        data = self.checkpoint.data(stored).reshape(math.prod(tensor.shape[:-1]), -1)[start:stop]
        return data if stored.dtype == tensor.type else _to_float32(data, stored.dtype)


def _metadata_line(item: tuple[str, Any]) -> str:
    key, value = item
    if isinstance(value, (list, np.ndarray)):
        shown = f"{len(value)} values"
    else:
        shown = repr(value.item() if isinstance(value, np.generic) else value)
    return f"{key} = {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _to_float32(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.uint8]:
    if dtype == "F16":
        values = data.view("<f2").astype("<f4")
    else:
        # bf16 is the upper half of float32.
        values = (data.view("<u2").astype("<u4") << 16).view("<f4")
    return values.view(np.uint8)


def _match(
    architecture: Architecture,
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    checkpoint: Checkpoint,
    faults: Faults,
) -> tuple[PlannedTensor, ...]:
    """Uses each source tensor once and produces each target once, or says what prevents it."""
    planned = {
        name: PlannedTensor(name, (len(values),), "F32", None, values)
        for name, values in config.vectors.items()
    }
    used: set[str] = set()
    for rule, source, target in expanded(architecture.rules, config.dimensions["layers"]):
        tensor = stored.get(source)
        if tensor is None:
            if rule.optional_if is None or not config.conditions[rule.optional_if]:
                faults.add(checkpoint.folder, f"tensor {source!r} is missing.")
            continue
        if source in used or target in planned:
            faults.add(tensor.path, f"tensor {source!r} -> {target!r}: is taken twice.")
        used.add(source)
        shape = tuple(config.dimensions[name] for name in rule.shape)
        if tensor.shape != shape:
            expected = f"({', '.join(f'{n} {s}' for n, s in zip(rule.shape, shape, strict=True))})"
            faults.add(
                tensor.path,
                f"tensor {source!r} has shape {tensor.shape}; config.json says {expected}.",
            )
        if tensor.dtype not in _FLOAT_DTYPES:
            faults.add(
                tensor.path,
                f"tensor {source!r} is stored as {tensor.dtype}; "
                f"{', '.join(_FLOAT_DTYPES)} can be converted.",
            )
        kind = "F32" if rule.float32 else tensor.dtype
        planned[target] = PlannedTensor(target, shape, kind, tensor)
    ignored = re.compile("|".join(architecture.ignored))
    for name in sorted(stored.keys() - used):
        if not ignored.fullmatch(name):
            faults.add(stored[name].path, f"tensor {name!r} has no place in {architecture.name}.")
    return tuple(planned.values())


def _architecture(checkpoint: Checkpoint) -> Architecture:
    path = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures") or []
    model_type = checkpoint.config.get("model_type")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(
            f"convert: {path}: architectures must be a list of class names.", path=str(path)
        )
    for architecture in ARCHITECTURES:
        if names[:1] == [architecture.name] or (
            not names and model_type == architecture.model_type
        ):
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if not names and not isinstance(model_type, str):
        raise FormatError(
            f"convert: {path}: names neither architectures nor model_type. Known are: {known}.",
            path=str(path),
        )
    name = names[0] if names else model_type
    raise UnsupportedError(
        f"convert: {path}: architecture {name!r} is unknown. Known are: {known}."
    )


def _tokenizer_notes(vocabulary: Vocabulary) -> Iterator[str]:
    for token_id, token in vocabulary.ignored:
        yield (
            f"Left out: added token {token!r} with id {token_id}, "
            f"beyond the {len(vocabulary.tokens)} rows of the embedding."
        )


def plan_conversion(checkpoint: str | Path) -> ConversionPlan:
    """Plans the conversion of a checkpoint; nothing is written and no weights are read.

    Args:
        checkpoint: a folder with config.json, safetensors weights and tokenizer.model.

    Returns:
        the plan, which `pg.convert` carries out.

    Raises:
        FileNotFoundError: there is no such folder.
        FormatError: the checkpoint breaks its format; all faults are named together.
        UnsupportedError: the architecture, tokenizer or weight format is not converted here.

    Cost:
        Reads headers and tokenizer files, well under a second.
    """
    folder = Path(checkpoint)
    faults = Faults("convert")
    source = Checkpoint(folder, faults)
    architecture = _architecture(source)
    config = architecture.read_config(Fields(source.config, folder / "config.json", faults))
    # Wrong dimensions would only make every tensor look wrong.
    faults.raise_if_any(folder)
    stored = source.open_weights()
    tensors = _match(architecture, config, stored, source, faults)
    metadata: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    # The embedding's rows must be real before a vocabulary of that size is laid out.
    if any(
        t.name == "token_embd.weight" and t.source and t.source.shape == t.shape for t in tensors
    ):
        try:
            metadata, notes = _metadata(architecture, config, tensors, source, faults)
        except FormatError as error:
            if not faults.sentences:
                raise
            faults.add(Path(error.path or folder), str(error))
    faults.raise_if_any(folder)
    return ConversionPlan(
        folder, architecture.gguf_name, MappingProxyType(metadata), tensors, notes, source
    )


def _metadata(
    architecture: Architecture,
    config: ModelConfig,
    tensors: tuple[PlannedTensor, ...],
    source: Checkpoint,
    faults: Faults,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    path = source.folder / "generation_config.json"
    generation = read_object(path) if path.exists() else {}
    vocabulary = Vocabulary(source.folder, config.dimensions["vocabulary"], faults)
    metadata = {
        "general.architecture": architecture.gguf_name,
        **general_metadata(
            source.folder,
            source.config,
            generation,
            parameters=sum(math.prod(tensor.shape) for tensor in tensors),
            strips=vocabulary.strips_after_special,
        ),
        **config.metadata,
        **vocabulary.metadata(),
        **special_token_metadata(vocabulary, source.config, generation, faults=faults),
    }
    return metadata, tuple(_tokenizer_notes(vocabulary))
