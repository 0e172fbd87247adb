"""Checkpoints of the Phi family become GGUF files, without torch or transformers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy.typing as npt

from phiggml.conversion.plan import ConversionPlan, PlannedTensor, plan_conversion
from phiggml.errors import InputError
from phiggml.quantization import (
    Progress,
    QuantizeOptions,
    Report,
    WriteJob,
    write_model,
)
from phiggml.source import SourceModel, SourceTensor

__all__ = ["ConversionPlan", "PlannedTensor", "convert", "plan_conversion"]

_DEFAULT_OPTIONS = QuantizeOptions()


def _source_model(plan: ConversionPlan) -> SourceModel:
    tensors = [
        SourceTensor(t.name, t.shape, t.type, functools.partial(plan.read, t)) for t in plan.tensors
    ]
    return SourceModel(plan.architecture, plan.metadata, tensors)


def _refuse_own_source(plan: ConversionPlan, out: Path) -> None:
    """Renaming the result over a weight file would destroy the checkpoint."""
    if out.exists() and any(out.samefile(path) for path in plan.source_files):
        raise InputError(
            f"convert: {out}: is a file of the checkpoint itself. Write to another name."
        )


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "F16",
    *,
    imatrix: Mapping[str, npt.ArrayLike] | None = None,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions = _DEFAULT_OPTIONS,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Report:
    """Converts a Hugging Face checkpoint to a GGUF file, quantized on the way where asked.

    Args:
        checkpoint: a folder with config.json, safetensors weights (bf16, f16 or f32) and
            tokenizer.model. Nothing in it is executed; pickled weights are refused.
        out: the file to write.
        type: of the whole model, any case; see `model_types`.
        imatrix, overrides, options, threads, progress: as for `quantize_model`.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report, but write nothing.

    Returns:
        Report; str() of it is a table.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: `out` exists and overwrite is False.
        FormatError: the checkpoint breaks its format; all faults are named together.
        InputError: as `quantize_model`, or `out` is a file of the checkpoint.
        UnsupportedError: the architecture, tokenizer or weight format is not converted here.

    Cost:
        As `quantize_model`. Weights are read once, through a map, some rows at a time.

    Source:
        Tensors and metadata as llama.cpp's converter writes them for the same class, with the
        rotary parameters read as transformers reads them.

    Example:
        >>> import phiggml as pg
        >>> report = pg.convert("phi3-nano", "phi3-nano-Q8_0.gguf", "Q8_0")
        >>> len(report.tensors), report.bits_per_weight < 9
        (27, True)
    """
    plan = plan_conversion(Path(checkpoint))
    try:
        _refuse_own_source(plan, Path(out))
        job = WriteJob(imatrix, overrides, options, threads, progress, overwrite, dry_run)
        return write_model(_source_model(plan), Path(out), type, job=job)
    finally:
        plan.checkpoint.close()
