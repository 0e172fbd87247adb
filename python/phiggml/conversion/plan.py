"""The plan of a conversion: every tensor and key of the GGUF file, known from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.conversion.architecture import Architecture, ModelConfig
from phiggml.conversion.checkpoint import Checkpoint
from phiggml.conversion.family import architecture_of
from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import Fields
from phiggml.conversion.general import general_metadata
from phiggml.conversion.jsonfile import read_object
from phiggml.conversion.match import match_tensors
from phiggml.conversion.planned_tensor import Piece, PlannedTensor
from phiggml.conversion.special_tokens import END_IDS, special_token_metadata
from phiggml.conversion.vocabulary import Vocabulary, read_vocabulary
from phiggml.errors import FormatError
from phiggml.quant_type import QuantType

__all__ = ["ConversionPlan", "plan_conversion"]


@dataclass(frozen=True, eq=False)
class ConversionPlan:
    """What a conversion will write; `str(plan)` is a table. Equal to itself alone.

    Args:
        folder: the checkpoint.
        architecture: of the GGUF file.
        metadata: GGUF keys and values, without general.file_type and quantization_version.
        tensors: in the order of the file.
        notes: what was left out or decided, as sentences.
        checkpoint: what the weights are read from.
        model_id: "owner/name" of a checkpoint of the hub.
    """

    folder: Path
    architecture: str
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: tuple[PlannedTensor, ...] = field(repr=False)
    notes: tuple[str, ...]
    checkpoint: Checkpoint = field(repr=False)
    model_id: str | None = None

    def __str__(self) -> str:
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        counts = f"{len(self.tensors)} tensors, {elements:,} elements"
        head = f"{self.model_id or self.folder} -> {self.architecture}: {counts}"
        lines = [head, *map(str, self.tensors), *map(_metadata_line, self.metadata.items())]
        return "\n".join([*lines, *self.notes])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "metadata": dict(self.metadata)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, metadata=MappingProxyType(state["metadata"]))

    def row_runs(self) -> dict[str, tuple[_core.pipeline.RowRun, ...]]:
        """By tensor, where its rows lie in the checkpoint's files.

        Raises:
            FormatError: a file has been written to since its header was read.
        """
        sources = self.checkpoint.row_sources()
        return {tensor.name: tuple(_runs(tensor, sources)) for tensor in self.tensors}

    def read(self, tensor: PlannedTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of a tensor in its planned type: uint8[stop - start, row_bytes].

        Cost:
            Reads these rows alone; one more copy where BF16 or F16 become F32, or where the rows
            lie in several pieces.
        """
        if not tensor.pieces:
            row = np.asarray([tensor.values], dtype="<f4").view(np.uint8)
            return row[start:stop]
        found = []
        first = 0
        for piece in tensor.pieces:
            rows = piece.stop - piece.start
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high:
                found.append(self._rows(tensor, piece, low, high))
            first += rows
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _rows(
        self, tensor: PlannedTensor, piece: Piece, start: int, stop: int
    ) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of a piece."""
        stored = piece.tensor
        row_bytes = stored.nbytes // math.prod(stored.shape[:-1])
        first, last = ((piece.start + row) * row_bytes for row in (start, stop))
        rows = self.checkpoint.data(stored, first, last).reshape(-1, row_bytes)
        return rows if stored.dtype == tensor.type else _to_float32(rows, stored.dtype)


def _runs(
    tensor: PlannedTensor, sources: Mapping[str, _core.pipeline.RowSource]
) -> Iterator[_core.pipeline.RowRun]:
    if not tensor.pieces:
        values = np.asarray(tensor.values, dtype="<f4").view(np.uint8)
        source = _core.pipeline.source_of_array(values, tensor.name)
        yield _core.pipeline.RowRun(
            source=source, offset=0, n_rows=1, type_id=QuantType(tensor.type).id
        )
    for piece in tensor.pieces:
        stored = piece.tensor
        row_bytes = stored.nbytes // math.prod(stored.shape[:-1])
        yield _core.pipeline.RowRun(
            source=sources[stored.path.name],
            offset=stored.offset + piece.start * row_bytes,
            n_rows=piece.stop - piece.start,
            type_id=QuantType(stored.dtype).id,
        )


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


def _tokenizer_notes(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> Iterator[str]:
    for token_id, token in vocabulary.ignored:
        yield (
            f"Left out: added token {token!r} with id {token_id}, "
            f"beyond the {len(vocabulary.tokens)} rows of the embedding."
        )
    if END_IDS in metadata:
        tokens = ", ".join(repr(vocabulary.tokens[i]) for i in metadata[END_IDS].tolist())
        yield f"Generation ends at {tokens} too, for which only {END_IDS} has room, a key of ours."


def plan_conversion(checkpoint: str | Path, *, model_id: str | None = None) -> ConversionPlan:
    """Plans the conversion of a checkpoint; nothing is written and no weights are read.

    Args:
        checkpoint: a folder with config.json, safetensors weights and a tokenizer.
        model_id: what the model is called, if not as its folder is: "owner/name".

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
    architecture = architecture_of(source.config, folder / "config.json")
    config = architecture.read_config(Fields(source.config, folder / "config.json", faults))
    # Wrong dimensions would only make every tensor look wrong.
    faults.raise_if_any(folder)
    stored = source.open_weights()
    tensors, left_out = match_tensors(architecture, config, stored, folder=folder, faults=faults)
    metadata: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    # The embedding's rows must be real before a vocabulary of that size is laid out.
    embedding = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if embedding and [source.shape for source in embedding.sources] == [embedding.shape]:
        try:
            metadata, notes = _metadata(
                architecture, config, tensors, source=source, model_id=model_id, faults=faults
            )
        except FormatError as error:
            if not faults.sentences:
                raise
            faults.add(Path(error.path or folder), str(error))
    faults.raise_if_any(folder)
    return ConversionPlan(
        folder,
        architecture.gguf_name,
        MappingProxyType(metadata),
        tensors,
        (*left_out, *notes),
        source,
        model_id,
    )


def _metadata(
    architecture: Architecture,
    config: ModelConfig,
    tensors: tuple[PlannedTensor, ...],
    *,
    source: Checkpoint,
    model_id: str | None,
    faults: Faults,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    path = source.folder / "generation_config.json"
    generation = read_object(path) if path.exists() else {}
    vocabulary = read_vocabulary(source.folder, config.dimensions["vocabulary"], faults)
    metadata = {
        "general.architecture": architecture.gguf_name,
        **general_metadata(
            source.folder,
            source.config,
            generation,
            parameters=sum(math.prod(tensor.shape) for tensor in tensors),
            strips=vocabulary.strips_after_special,
            model_id=model_id,
        ),
        **config.metadata,
        **vocabulary.metadata(),
        **special_token_metadata(vocabulary, source.config, generation, faults=faults),
    }
    return metadata, tuple(_tokenizer_notes(vocabulary, metadata))
