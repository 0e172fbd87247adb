"""What quantization will do, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phiggml.gguf_text import columns, one_line, shown_shape

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

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, shape, type before and after, and bytes after, as tables show them."""
        shape, nbytes = shown_shape(self.shape), f"{self.nbytes:,}"
        return one_line(self.name), shape, self.source_type, self.type, nbytes


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

    @property
    def total(self) -> str:
        """How many tensors, bytes and bits per weight, in one line."""
        return (
            f"{self.type}: {len(self.tensors)} tensors, {self.nbytes:,} bytes, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )

    def lines(self, errors: Mapping[str, str] | None = None) -> list[str]:
        """The table of tensors, line by line.

        Args:
            errors: tensor name -> its error; None for a table without such a column.
        """
        measured = errors is not None
        rows = [
            (
                *tensor.cells,
                *([errors.get(tensor.name, "")] if errors is not None else []),
                tensor.note,
            )
            for tensor in self.tensors
        ]
        heading = ("tensor", "shape", "from", "to", "bytes", *(["nrmse"] if measured else []), "")
        return columns([heading, *rows], right=(4, 5) if measured else (4,))

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *self.notes, self.total])
