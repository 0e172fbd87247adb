"""What quantization will do, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiggml.recipe import Recipe

__all__ = ["Plan", "PlannedTensor"]


@dataclass(frozen=True)
class PlannedTensor:
    """A row of a plan or report: what a tensor is, and what it becomes.

    Attributes:
        name: of the tensor.
        shape: in numpy order.
        source_type: what it is.
        type: what it becomes.
        source_nbytes: size of its data before.
        nbytes: size of its data after.
        note: why the type is not the one that was meant for it, or nothing.
        rule: what chose the type: "type" (the whole model's), "output_type", "embedding_type",
            "override 'EXPRESSION'", "tensors" (a recipe that names this tensor); empty for a
            tensor that stays as it is.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_nbytes: int
    nbytes: int
    note: str = ""
    rule: str = ""


@dataclass(frozen=True)
class Plan:
    """What quantization will do, tensor by tensor in the order of the file. str() is a table.

    Attributes:
        type: the whole model's type.
        file_type: value of general.file_type.
        tensors: one row for each.
        notes: what had no effect, in sentences.
        recipe: chooses these types again, by the tensors' names; None where no recipe could.
    """

    type: str
    file_type: int
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...] = ()
    recipe: Recipe | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size of all tensor data, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a number, over all tensors."""
        numbers = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * self.nbytes / numbers if numbers else 0.0

    def __str__(self) -> str:
        rows = [
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                tensor.source_type,
                tensor.type,
                f"{tensor.nbytes:,}",
                tensor.note,
            )
            for tensor in self.tensors
        ]
        heading = ("tensor", "shape", "from", "to", "bytes", "")
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(5)]
        lines = [
            "  ".join(
                [
                    *(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)),
                    row[4].rjust(widths[4]),
                    row[5],
                ]
            ).rstrip()
            for row in [heading, *rows]
        ]
        total = f"{self.type}: {len(rows)} tensors, {self.nbytes:,} bytes, "
        return "\n".join(
            [*lines, *self.notes, total + f"{self.bits_per_weight:.2f} bits per weight"]
        )
