"""A model, tensor by tensor, to a GGUF file of quantized types: plan, then write."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiggml import _core
from phiggml.errors import InputError
from phiggml.gguf import GGUFValue, GGUFWriter
from phiggml.gguf_part import TensorInfo
from phiggml.gguf_parts import SplitRules, planned_sizes
from phiggml.gguf_writer_metadata import SPLIT_KEYS
from phiggml.gguf_writer_target import file_names
from phiggml.imatrix import FittedImatrix, Imatrix, ImatrixSource, fitted
from phiggml.number import integer
from phiggml.peak_memory import PeakMemory
from phiggml.pipeline import PipelineSettings, RowConversion
from phiggml.progress import Progress
from phiggml.quant import QuantType
from phiggml.recipe import ModelShape, Plan, QuantizeOptions, Recipe, TensorFacts, plan_types
from phiggml.recipe_rules import some
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
# llama-imatrix collects none for embeddings, and for the output only if asked to.
_WITHOUT_IMPORTANCES = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
_STAGES = ("plan", "read", "convert", "write", "finish")


@dataclass(frozen=True)
class WriteJob:
    """How write_model does its work.

    Attributes:
        imatrix: tensor name -> importances, float32[n] or float32[experts, n]; a file of them; or
            None.
        overrides: regular expression over tensor names -> tensor type.
        options: see QuantizeOptions.
        threads: None means all cores available to the process.
        progress: called with a Progress after each piece, from the calling thread.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report, but write nothing.
    """

    imatrix: ImatrixSource | None = None
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
    type: str | Recipe,
    *,
    imatrix: ImatrixSource | None = None,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions = _DEFAULT_OPTIONS,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Report:
    """Writes a GGUF file again with its weights quantized.

    Args:
        src: a GGUF file, or any part of a split one (the parts are merged).
        out: the file to write; it appears there only when it is complete. Where options split it,
            it becomes PREFIX-00001-of-00003.gguf and so on, as llama-gguf-split names them.
        type: of the whole model, such as "Q4_K_M", any case, see `model_types`; or a `Recipe`.
        imatrix: the path of an importance matrix as llama-imatrix writes it (GGUF, or the older
            .dat); or tensor name -> importances, float32[n] for rows of n (float32[experts, n] for
            a tensor of experts).
        overrides: Python's regular expression, searched for in names -> tensor type. The first
            that matches wins; tensors that the rules never quantize (norms, biases) stay as is.
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
        FormatError: the source is no valid model, or changes; the file of importances is unsound.
        UnsupportedError: an architecture for which there are no rules.
        FileExistsError: `out` exists and overwrite is False.
        OSError: a file cannot be read, or not be written. In each case nothing is left behind.

    Cost:
        The source is read once, ahead of the threads that convert. Memory is bounded by
        options.max_memory, not by the size of tensors; the GIL is released while numbers are
        converted; Ctrl-C stops it and leaves no file.

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
    source: SourceModel, out: str | os.PathLike[str], type: str | Recipe, *, job: WriteJob
) -> Report:
    """Writes a model's tensors, converted to the types that the rules choose, as a GGUF file.

    Args:
        source: metadata and tensors.
        out: the file to write; it appears there only when it is complete.
        type: of the whole model, any case; or a recipe.
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
    stages = _Stages()
    with stages.timed("plan"):
        work = _planned_work(source, os.fspath(out), type, job)
    if not job.dry_run:
        _carry_out(work, job, stages)
    return Report(
        Path(work.names[0]),
        work.plan,
        work.nbytes,
        stages.elapsed,
        written=not job.dry_run,
        stages={name: stages.seconds[name] for name in _STAGES if name in stages.seconds},
        peak_memory=stages.memory.nbytes,
        errors=work.conversion.errors(),
        warnings=work.warnings,
        paths=tuple(map(Path, work.names)) if work.rules.split else (),
    )


class _Stages:
    """How long each stage takes, and how much memory was held."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory = PeakMemory()
        self._started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            self.memory.look()


@dataclass(frozen=True)
class _Work:
    """All that is decided before the first byte is written."""

    out: str
    names: tuple[str, ...]
    plan: Plan
    metadata: dict[str, Any]
    rules: SplitRules
    nbytes: int
    conversion: RowConversion
    warnings: tuple[str, ...]


def _planned_work(source: SourceModel, out: str, type: str | Recipe, job: WriteJob) -> _Work:
    options = job.options
    settings = PipelineSettings(
        thread_count(job.threads, "quantize"), _max_memory(options), options.measure_error
    )
    fit = fitted(job.imatrix, ((tensor.name, tensor.shape) for tensor in source.tensors))
    plan = plan_types(
        ModelShape.from_metadata(source.architecture, _plain(source.metadata)),
        [TensorFacts(tensor.name, tensor.shape, tensor.type) for tensor in source.tensors],
        type,
        overrides=job.overrides,
        options=options,
        imatrix_names=None if fit is None else fit.importances,
    )
    metadata = _output_metadata(source.metadata, plan, fit)
    rules = _split_rules(source, options)
    sizes = planned_sizes(metadata, _infos(plan), rules)
    names = file_names(out, len(sizes) if rules.split else None)
    _refuse_sources(names, source, job)
    sources = {tensor.name: tensor for tensor in source.tensors}
    importances = {} if fit is None else fit.importances
    conversion = RowConversion(plan.tensors, sources, importances, settings=settings)
    warnings = () if fit is None else (*fit.warnings, *_without_importances(plan, fit))
    return _Work(out, names, plan, metadata, rules, sum(sizes), conversion, warnings)


def _without_importances(plan: Plan, fit: FittedImatrix) -> Iterator[str]:
    """A warning of what an importance matrix should have, and has not."""
    names = [
        tensor.name
        for tensor in plan.tensors
        if tensor.type != tensor.source_type
        and QuantType(tensor.type).block_size > 1
        and tensor.name not in fit.importances
        and tensor.name not in _WITHOUT_IMPORTANCES
    ]
    if names:
        yield (
            f"imatrix: {some(names)}: it has no importances of them, and all columns count the "
            "same there. Was it made from this model?"
        )


def _split_rules(source: SourceModel, options: QuantizeOptions) -> SplitRules:
    if not options.keep_split:
        return SplitRules(max_bytes=options.split_max_bytes)
    if not source.split:
        return SplitRules()
    parts = Counter(tensor.part for tensor in source.tensors)
    return SplitRules(counts=[parts[number] for number in range(len(source.paths))])


def _refuse_sources(names: tuple[str, ...], source: SourceModel, job: WriteJob) -> None:
    """A result renamed over what it was made of would destroy that."""
    read = list(source.paths)
    imatrix = job.imatrix.file if isinstance(job.imatrix, Imatrix) else job.imatrix
    if isinstance(imatrix, str | os.PathLike):
        read.append(Path(imatrix))
    for out in map(Path, names):
        if out.exists() and any(path.exists() and out.samefile(path) for path in read):
            raise InputError(f"write: {out}: it is the source itself. Write to another file.")


def _carry_out(work: _Work, job: WriteJob, stages: _Stages) -> None:
    conversion = work.conversion
    with ExitStack() as output:
        with stages.timed("write"):
            writer = output.enter_context(
                GGUFWriter(
                    work.out,
                    overwrite=job.overwrite,
                    split_max_bytes=work.rules.max_bytes,
                    split_counts=work.rules.counts,
                )
            )
            for key, value in work.metadata.items():
                writer.metadata[key] = value
            for tensor in work.plan.tensors:
                writer.add_tensor_stream(tensor.name, tensor.shape, tensor.type)
        with closing(conversion.chunks()) as chunks:
            total = sum(tensor.source_nbytes for tensor in work.plan.tensors)
            done = 0
            _tell(job, Progress("quantize", 0, total, "", stages.elapsed))
            for chunk in chunks:
                with stages.timed("write"):
                    writer.write_rows(chunk.rows)
                tensor = work.plan.tensors[chunk.tensor]
                done += tensor.source_nbytes * chunk.rows.nbytes // tensor.nbytes
                _tell(job, Progress("quantize", done, total, tensor.name, stages.elapsed))
        stages.seconds["read"] = conversion.read_seconds
        stages.seconds["convert"] = conversion.convert_seconds
        with stages.timed("finish"):
            writer.close()


def _tell(job: WriteJob, progress: Progress) -> None:
    if job.progress is not None:
        job.progress(progress)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the wrappers that fix a value's GGUF type."""
    return {
        key: value.value if isinstance(value, GGUFValue) else value
        for key, value in metadata.items()
    }


def _output_metadata(
    metadata: Mapping[str, Any], plan: Plan, imatrix: FittedImatrix | None
) -> dict[str, Any]:
    """What the file says about itself, in the order of llama_model_quantize."""
    version, file_type = "general.quantization_version", "general.file_type"
    of_imatrix = {} if imatrix is None else imatrix.metadata
    dropped = {version, file_type, *SPLIT_KEYS, *of_imatrix}
    return {
        **{key: value for key, value in metadata.items() if key not in dropped},
        version: GGUFValue(_core.recipe.quantization_version(), "UINT32"),
        file_type: GGUFValue(plan.file_type, "UINT32"),
        **of_imatrix,
    }


def _infos(plan: Plan) -> Iterator[TensorInfo]:
    for tensor in plan.tensors:
        yield TensorInfo(tensor.name, QuantType(tensor.type), tensor.shape, tensor.nbytes)


def file_size(metadata: Mapping[str, Any], plan: Plan) -> int:
    """Size of the file that a GGUFWriter would write, in bytes."""
    return sum(planned_sizes(metadata, _infos(plan), SplitRules()))


def _max_memory(options: QuantizeOptions) -> int | None:
    if options.max_memory is None:
        return None
    budget = integer(options.max_memory, 1, (1 << 63) - 1)
    if budget is None:
        raise InputError(
            f"max_memory: {options.max_memory!r}: it must be a positive number of bytes (below "
            "2^63), or None."
        )
    return budget
