"""A model, tensor by tensor, to a GGUF file of quantized types: plan, then write."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.gguf import GGUFValue, GGUFWriter
from phiggml.gguf_part import aligned
from phiggml.gguf_value import encode_string, encode_value
from phiggml.gguf_writer_metadata import PADDING_KEY, SPLIT_KEYS
from phiggml.pipeline import Chunk, PipelineSettings, converted
from phiggml.progress import Progress
from phiggml.recipe import (
    ModelShape,
    Plan,
    QuantizeOptions,
    TensorFacts,
    plan_types,
)
from phiggml.report import Report
from phiggml.runtime import thread_count
from phiggml.source import SourceModel, SourceTensor, gguf_source

__all__ = [
    "Progress",
    "QuantizeOptions",
    "Report",
    "SourceModel",
    "SourceTensor",
    "WriteJob",
    "file_size",
    "quantize_model",
    "write_model",
]

_DEFAULT_OPTIONS = QuantizeOptions()


@dataclass(frozen=True)
class WriteJob:
    """How write_model does its work.

    Attributes:
        imatrix: tensor name -> importances, float32[n] or float32[experts, n]; or None.
        overrides: regular expression over tensor names -> tensor type.
        options: see QuantizeOptions.
        threads: None means all cores available to the process.
        progress: called with a Progress after each piece, from the calling thread.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report, but write nothing.
    """

    imatrix: Mapping[str, npt.ArrayLike] | None = None
    overrides: Mapping[str, str] | None = None
    options: QuantizeOptions = _DEFAULT_OPTIONS
    threads: int | None = None
    progress: Callable[[Progress], object] | None = None
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.options, QuantizeOptions):
            raise InputError(f"options: {self.options!r}: it must be a QuantizeOptions.")
        if not isinstance(self.overrides, Mapping | None):
            raise InputError(
                f"overrides: {self.overrides!r}: it must be a mapping from regular expressions "
                "over tensor names to types."
            )


def quantize_model(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str,
    *,
    imatrix: Mapping[str, npt.ArrayLike] | None = None,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions = _DEFAULT_OPTIONS,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Report:
    """Writes a GGUF file again with its weights quantized.

    Args:
        src: a GGUF file, or the first part of a split one (the parts are merged).
        out: the file to write; it appears there only when it is complete.
        type: of the whole model, such as "Q4_K_M", any case; see `model_types`.
        imatrix: tensor name -> importances, float32[n] for rows of n (float32[experts, n] for
            a tensor of experts).
        overrides: regular expression, searched for in tensor names -> tensor type. The first that
            matches wins; tensors that the rules never quantize (norms, biases) stay as they are.
        options: what else to do differently.
        threads: how many to use; None means all cores available to the process.
        progress: called with a `Progress` after each piece; what it raises ends the work.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report the exact size, but write nothing.

    Returns:
        Report; str() of it is a table.

    Raises:
        InputError: an unknown type, a bad expression, importances that do not fit, or tensors that
            cannot become what they should (all of them together), before any work; or weights that
            are not finite.
        FormatError: the source is no valid GGUF model.
        UnsupportedError: an architecture for which there are no rules.
        FileExistsError: `out` exists and overwrite is False.

    Cost:
        Memory is bounded by options.max_memory, not by the size of tensors; the GIL is released
        while numbers are converted; Ctrl-C stops it and leaves no file.

    Source:
        Types by llama.cpp's own rules (llama-quant.cpp), numbers by ggml_quantize_chunk: tensor
        data equal, byte for byte, those that llama-quantize writes.

    Example:
        >>> import phiggml as pg
        >>> pg.quantize_model("phi3-nano.gguf", "phi3-nano-Q4.gguf", "Q4_K_M").tensors[0].type
        'Q6_K'
    """
    job = WriteJob(imatrix, overrides, options, threads, progress, overwrite, dry_run)
    with ExitStack() as files:
        return write_model(gguf_source(src, files), out, type, job=job)


def write_model(
    source: SourceModel, out: str | os.PathLike[str], type: str, *, job: WriteJob
) -> Report:
    """Writes a model's tensors, converted to the types that the rules choose, as a GGUF file.

    Args:
        source: metadata and tensors.
        out: the file to write; it appears there only when it is complete.
        type: of the whole model, any case.
        job: everything else.

    Returns:
        What was written.

    Raises:
        As quantize_model.

    Cost:
        As quantize_model; each row is read once.

    Source:
        The order of keys and tensors is llama_model_quantize's.
    """
    started = time.perf_counter()
    path = Path(out)
    for read in source.paths:
        if path.exists() and path.samefile(read):
            raise InputError(f"quantize: {path}: it is the source itself. Write to another file.")
    imatrix = None if job.imatrix is None else _checked_imatrix(job.imatrix, source.tensors)
    plan = plan_types(
        ModelShape.from_metadata(source.architecture, _plain(source.metadata)),
        [TensorFacts(tensor.name, tensor.shape, tensor.type) for tensor in source.tensors],
        type,
        overrides=job.overrides,
        options=job.options,
        imatrix_names=imatrix,
    )
    settings = PipelineSettings(thread_count(job.threads, "quantize"), _max_memory(job.options))
    metadata = _output_metadata(source.metadata, plan)
    if job.dry_run:
        nbytes = file_size(metadata, plan)
    else:
        sources = {tensor.name: tensor for tensor in source.tensors}
        chunks = converted(plan.tensors, sources, imatrix or {}, settings=settings)
        with GGUFWriter(path, overwrite=job.overwrite) as writer, closing(chunks):
            _declare(writer, metadata, plan)
            total = sum(tensor.source_nbytes for tensor in plan.tensors)
            _write(chunks, writer, total=total, progress=job.progress)
        nbytes = path.stat().st_size
    return Report(path, plan, nbytes, time.perf_counter() - started, written=not job.dry_run)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the wrappers that fix a value's GGUF type."""
    return {
        key: value.value if isinstance(value, GGUFValue) else value
        for key, value in metadata.items()
    }


def _output_metadata(metadata: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """What the file says about itself, in the order of llama_model_quantize."""
    version, file_type = "general.quantization_version", "general.file_type"
    dropped = {version, file_type, PADDING_KEY, *SPLIT_KEYS}
    return {
        **{key: value for key, value in metadata.items() if key not in dropped},
        version: GGUFValue(_core.recipe.quantization_version(), "UINT32"),
        file_type: GGUFValue(plan.file_type, "UINT32"),
    }


def _declare(writer: GGUFWriter, metadata: Mapping[str, Any], plan: Plan) -> None:
    for key, value in metadata.items():
        writer.metadata[key] = value
    for tensor in plan.tensors:
        writer.add_tensor_stream(tensor.name, tensor.shape, tensor.type)


def file_size(metadata: Mapping[str, Any], plan: Plan) -> int:
    """Size of the file that a GGUFWriter would write, in bytes."""
    given = _plain(metadata).get("general.alignment", 32)
    alignment = int(given)

    header = 24 + sum(
        len(encode_string(key, "quantize")) + len(encode_value(value, key))
        for key, value in metadata.items()
    )
    header += sum(
        len(encode_string(tensor.name, "quantize")) + 16 + 8 * len(tensor.shape)
        for tensor in plan.tensors
    )
    data = sum(aligned(tensor.nbytes, alignment) for tensor in plan.tensors)
    return aligned(header, alignment) + data


def _checked_imatrix(
    imatrix: Mapping[str, npt.ArrayLike], tensors: Sequence[SourceTensor]
) -> dict[str, npt.NDArray[np.float32]]:
    """Importances of the tensors that are there, float32[experts, n], each checked."""
    if not isinstance(imatrix, Mapping):
        raise InputError(
            f"imatrix: {imatrix!r}: it must be a mapping from tensor names to importances."
        )
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    if not shapes.keys() & imatrix.keys():
        raise InputError(
            f"imatrix: none of its {len(imatrix)} names is a tensor of this model. "
            "Pass one that was made from this model."
        )
    checked = {}
    for name, values in imatrix.items():
        array = np.asarray(values)
        if array.dtype.kind != "f":
            raise InputError(f"imatrix: {name}: its dtype is {array.dtype}. Pass float32.")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(array).all() or (array < 0).any():
            raise InputError(
                f"imatrix: {name}: importances are finite and not negative. Collect them anew."
            )
        if name in shapes:
            checked[name] = _importances(name, array, shapes[name])
    return checked


def _importances(
    name: str, array: npt.NDArray[np.float32], shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    experts, n = math.prod(shape[:-2]), shape[-1]
    if array.size != experts * n or array.shape[-1:] not in {(n,), (experts * n,)}:
        wanted = f"float32[{n}]" if experts == 1 else f"float32[{experts}, {n}]"
        raise InputError(
            f"imatrix: {name}: its shape is {array.shape}, not {wanted}. "
            "Pass one that was made from this model."
        )
    return array.reshape(experts, n)


def _max_memory(options: QuantizeOptions) -> int | None:
    budget = options.max_memory
    if budget is not None and (
        isinstance(budget, bool) or not isinstance(budget, int) or budget < 1
    ):
        raise InputError(f"max_memory: {budget!r}: it must be a positive number of bytes, or None.")
    return budget


def _write(
    chunks: Iterator[Chunk],
    writer: GGUFWriter,
    *,
    total: int,
    progress: Callable[[Progress], object] | None,
) -> None:
    done = 0
    if progress is not None:
        progress(Progress("quantize", 0, total))
    for chunk in chunks:
        writer.write_rows(chunk.rows)
        done += chunk.source_bytes
        if progress is not None:
            progress(Progress("quantize", done, total))
