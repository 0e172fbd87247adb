"""What a job that wrote a model tells when it is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from phiggml.recipe import Plan, PlannedTensor

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What was written (or would be, in a dry run). str() is a table.

    Attributes:
        path: the file.
        plan: the types, tensor by tensor.
        nbytes: size of the file.
        seconds: how long it took.
        written: False in a dry run.
    """

    path: Path
    plan: Plan
    nbytes: int
    seconds: float
    written: bool = True

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """One row for each tensor: name, shape, source type, type, bytes."""
        return self.plan.tensors

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a number, over all tensors."""
        return self.plan.bits_per_weight

    def __str__(self) -> str:
        done = f"written in {self.seconds:.1f} s" if self.written else "a dry run, nothing written"
        return f"{self.plan}\n{os.fspath(self.path)}: {self.nbytes:,} bytes, {done}"
