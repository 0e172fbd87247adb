"""What a job that wrote a model tells when it is done."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from phiggml.gguf_text import columns, escaped, one_line
from phiggml.recipe import Plan, PlannedTensor

__all__ = ["Report", "TypeShare"]

_STAGES_OF_ALL_THREADS = ("read", "convert")


@dataclass(frozen=True)
class TypeShare:
    """How much of a model is of one type.

    Attributes:
        type: of the tensors.
        tensors: how many there are.
        nbytes: of their data, without padding.
        share: of the data of all tensors, 0 to 1.
    """

    type: str
    tensors: int
    nbytes: int
    share: float


@dataclass(frozen=True)
class Report:
    """What was written (or would be, in a dry run). str() is a table.

    Attributes:
        path: the file; of several, the first.
        plan: the types, tensor by tensor.
        nbytes: size of the file, or of all files together.
        seconds: how long it took.
        written: False in a dry run.
        stages: seconds for "plan", "read", "convert", "write" and "finish". Reading and converting
            are summed over threads, which work beside the others: they do not add up to `seconds`.
        peak_memory: most bytes of anonymous memory that the process held; 0 where that is unknown.
        errors: tensor name -> normalised root mean square error of its numbers, where that was
            asked for (`measure_error`).
        warnings: what may not be as it was meant, in sentences.
        paths: all files of a model that was split; nothing where there is one.
    """

    path: Path
    plan: Plan
    nbytes: int
    seconds: float
    written: bool = True
    _: KW_ONLY
    stages: Mapping[str, float] = field(default_factory=dict, hash=False)
    peak_memory: int = 0
    errors: Mapping[str, float] = field(default_factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """One row for each tensor: name, shape, source type, type, bytes."""
        return self.plan.tensors

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a number, over all tensors."""
        return self.plan.bits_per_weight

    @property
    def notes(self) -> tuple[str, ...]:
        """What had no effect or was left out, in sentences."""
        return self.plan.notes

    @property
    def types(self) -> tuple[TypeShare, ...]:
        """How much is of which type, that of most bytes first."""
        sizes: dict[str, list[int]] = {}
        for tensor in self.tensors:
            sizes.setdefault(tensor.type, []).append(tensor.nbytes)
        total = self.plan.nbytes
        shares = [
            TypeShare(type, len(found), sum(found), sum(found) / total if total else 0.0)
            for type, found in sizes.items()
        ]
        return tuple(sorted(shares, key=lambda share: (-share.nbytes, share.type)))

    @property
    def largest_error(self) -> tuple[str, float] | None:
        """Tensor and nrmse of the one that lost most; None where errors were not measured."""
        measured = {t.name: e for t in self.tensors if (e := self._error(t.name)) is not None}
        return max(measured.items(), key=lambda item: item[1], default=None)

    @property
    def measured(self) -> tuple[str, ...]:
        """A line for the largest error, for the time of each stage, and for memory."""
        lines = []
        if self.largest_error is not None:
            lines.append(_shown_error(*self.largest_error))
        if self.stages:
            lines.append(_shown_stages(self.stages))
        if self.peak_memory:
            lines.append(f"peak memory: {self.peak_memory / 1e6:.0f} MB")
        return tuple(lines)

    def document(self) -> dict[str, Any]:
        """Returns everything as values that json.dumps takes; what `--json` prints.

        Returns:
            Keys that stay: "path", "paths" (all files), "type", "nbytes", "bits_per_weight",
            "seconds", "stages" (name -> seconds), "peak_memory" (bytes; None: unknown), "written",
            "notes", "warnings", "types" (each with "type", "tensors", "nbytes", "share") and
            "tensors" (each with "name", "shape", "source_type", "type", "source_nbytes", "nbytes",
            "note", "rule", "nrmse"; None: not measured, or all numbers are 0). No number is NaN or
            infinite.

        Example:
            >>> import phiggml as pg
            >>> report = pg.quantize_model("phi3-nano.gguf", "new.gguf", "Q8_0", dry_run=True)
            >>> document = report.document()
            >>> document["type"], document["written"], document["types"][0]["tensors"]
            ('Q8_0', False, 18)
        """
        return {
            "path": os.fspath(self.path),
            "paths": [os.fspath(path) for path in self.paths or (self.path,)],
            "type": self.plan.type,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "stages": dict(self.stages),
            "peak_memory": self.peak_memory or None,
            "written": self.written,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "types": [dataclasses.asdict(share) for share in self.types],
            "tensors": [
                {
                    **dataclasses.asdict(tensor),
                    "shape": list(tensor.shape),
                    "nrmse": self._error(tensor.name),
                }
                for tensor in self.tensors
            ],
        }

    def _error(self, name: str) -> float | None:
        error = self.errors.get(name)
        return None if error is None or not math.isfinite(error) else float(error)

    def __str__(self) -> str:
        plan = self.plan
        types = [
            (share.type, f"{share.tensors:,}", f"{share.nbytes:,}", f"{share.share:.1%}")
            for share in self.types
        ]
        return "\n".join(
            [
                *self._tensor_lines(),
                *plan.notes,
                "",
                *columns([("type", "tensors", "bytes", "share"), *types], right=(1, 2, 3)),
                plan.total,
                *self.measured,
                *(f"warning: {escaped(text)}" for text in self.warnings),
                self._outcome(),
            ]
        )

    def _tensor_lines(self) -> list[str]:
        errors = {tensor.name: _nrmse(self._error(tensor.name)) for tensor in self.tensors}
        return self.plan.lines(errors if self.errors else None)

    def _outcome(self) -> str:
        done = f"written in {self.seconds:.1f} s" if self.written else "a dry run, nothing written"
        files = f" in {len(self.paths)} files" if len(self.paths) > 1 else ""
        return f"{escaped(os.fspath(self.path))}: {self.nbytes:,} bytes{files}, {done}"


def _shown_stages(stages: Mapping[str, float]) -> str:
    """The seconds of each stage, in a line of 80 columns; of some, those of all threads."""
    alone, together = (
        ", ".join(
            f"{name} {seconds:.{2 if seconds < 10 else 1}f}"
            for name, seconds in stages.items()
            if (name in _STAGES_OF_ALL_THREADS) == summed
        )
        for summed in (False, True)
    )
    return "; ".join(
        text
        for text in (alone and f"seconds: {alone}", together and f"threads: {together}")
        if text
    )


def _shown_error(name: str, error: float) -> str:
    """The error of the tensor that lost most, in one line."""
    return f"largest error: nrmse {_nrmse(error)}, {one_line(name)}"


def _nrmse(error: float | None) -> str:
    return "" if error is None else f"{error:.5f}"
