"""Checkpoints of the Phi family become GGUF files, without torch or transformers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from phiggml.conversion.hub import Wanted, local_folder
from phiggml.conversion.plan import ConversionPlan, plan_conversion
from phiggml.conversion.planned_tensor import PlannedTensor
from phiggml.errors import UnsupportedError
from phiggml.imatrix import ImatrixSource
from phiggml.quantization import (
    Progress,
    QuantizeOptions,
    Report,
    WriteJob,
    write_model,
)
from phiggml.recipe import Recipe
from phiggml.source import SourceModel, SourceTensor

__all__ = [
    "ConversionPlan",
    "ConversionReport",
    "PlannedTensor",
    "convert",
    "plan_conversion",
]

_DEFAULT_OPTIONS = QuantizeOptions()


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Report):
    """What a conversion wrote (or would write, in a dry run: then str() shows the whole plan).

    Attributes:
        conversion: what each tensor and key is made of, and notes on what was left out.
    """

    conversion: ConversionPlan = field(repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the conversion left out, and what had no effect, in sentences."""
        return (*self.conversion.notes, *self.plan.notes)

    def __str__(self) -> str:
        if not self.written:
            return f"{self.conversion}\n\n{super().__str__()}"
        return "\n".join([*self.conversion.notes, super().__str__()])


def _source_model(plan: ConversionPlan) -> SourceModel:
    runs = plan.row_runs()
    tensors = [
        SourceTensor(t.name, t.shape, t.type, functools.partial(plan.read, t), runs[t.name])
        for t in plan.tensors
    ]
    # Whatever else is in the folder belongs to the model, or to its owner.
    kept = tuple(path for path in plan.folder.iterdir() if path.suffix != ".gguf")
    return SourceModel(plan.architecture, plan.metadata, tensors, kept)


def _refuse_split_kept(options: QuantizeOptions) -> None:
    if options.keep_split:
        raise UnsupportedError(
            "convert: keep_split: the shards of a checkpoint are no parts of a GGUF model. "
            "Set split_max_bytes."
        )


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str | Recipe = "F16",
    *,
    imatrix: ImatrixSource | None = None,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions = _DEFAULT_OPTIONS,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> ConversionReport:
    """Converts a Hugging Face checkpoint to a GGUF file, quantized on the way where asked.

    Args:
        checkpoint: a folder with config.json, safetensors weights (bf16, f16 or f32) and a
            tokenizer. Nothing in it is executed; pickled weights are refused. Of a model that
            also sees or hears, the text part is converted. Where there is no such folder, an id of
            the Hugging Face hub, "owner/name" or "owner/name@revision" (extra `hub`).
        out: the file to write.
        type: of the whole model, any case, see `model_types`; or a `Recipe`.
        imatrix, overrides, options, threads, progress: as for `quantize_model`.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report, but write nothing; of the hub's weights only headers are fetched.

    Returns:
        ConversionReport; str() of it is a table, in a dry run with the plan in front.

    Raises:
        FileNotFoundError: there is no such folder, nor such a model on the hub.
        PermissionError, ConnectionError: the hub refuses, or cannot be reached.
        FileExistsError: `out` exists and overwrite is False.
        FormatError: the checkpoint breaks its format; all faults are named together.
        InputError: as `quantize_model`, or `out` is a file of the checkpoint.
        UnsupportedError: the architecture, tokenizer or weight format is not converted here; or
            keep_split.

    Cost:
        As `quantize_model`. Weights are read once, some rows at a time.

    Source:
        Tensors and metadata as llama.cpp's converter writes them for the same class, with the
        rotary parameters read as transformers reads them.

    Example:
        >>> import phiggml as pg
        >>> report = pg.convert("phi3-nano", "phi3-nano-Q8_0.gguf", "Q8_0")
        >>> len(report.tensors), report.bits_per_weight < 9
        (27, True)
    """
    job = WriteJob(imatrix, overrides, options, threads, progress, overwrite, dry_run)
    _refuse_split_kept(options)
    wanted = Wanted.HEADERS if dry_run else Wanted.CHECKPOINT
    with local_folder(checkpoint, operation="convert", wanted=wanted, progress=progress) as folder:
        plan = plan_conversion(folder.path, model_id=folder.model_id)
        return _carried_out(plan, out, type, job=job)


def _carried_out(
    plan: ConversionPlan, out: str | os.PathLike[str], type: str | Recipe, *, job: WriteJob
) -> ConversionReport:
    try:
        report = write_model(_source_model(plan), out, type, job=job)
        return ConversionReport(**vars(report), conversion=plan)
    finally:
        plan.checkpoint.close()
