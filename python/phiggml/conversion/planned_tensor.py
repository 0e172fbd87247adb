"""A tensor of the planned GGUF file, and the rows of the checkpoint that it is made of."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from phiggml.conversion.safetensors import StoredTensor

__all__ = ["Piece", "PlannedTensor"]


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a stored tensor, seen as (prod(shape[:-1]), shape[-1])."""

    tensor: StoredTensor
    start: int
    stop: int


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file before quantization.

    Args:
        name: in the GGUF file.
        shape: numpy order.
        type: what is handed to the quantizer: BF16, F16 or F32.
        pieces: rows of the checkpoint's tensors, one piece after the other; none where config.json
            itself holds the values.
        values: those values.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    pieces: tuple[Piece, ...]
    values: tuple[float, ...] = ()

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The checkpoint's tensors, each once, in the order in which they are read."""
        return tuple(dict.fromkeys(piece.tensor for piece in self.pieces))

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"{self.name:32} {shape:>16} {self.type:5} <- {self._origin()}"

    def _origin(self) -> str:
        sources = self.sources
        if not sources:
            return "config.json"
        files = list(dict.fromkeys(source.path.name for source in sources))
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        dtypes = "/".join(dict.fromkeys(source.dtype for source in sources))
        name = sources[0].name
        if len(sources) > 1:
            name = f"{len(sources)} tensors {_summary([source.name for source in sources])}"
        else:
            name += self._rows_taken(sources[0])
        return f"{files[0]}{more}: {name} {dtypes}"

    def _rows_taken(self, source: StoredTensor) -> str:
        """Which rows of its only source it takes, if not all."""
        taken = sum(piece.stop - piece.start for piece in self.pieces)
        if taken == math.prod(source.shape[:-1]):
            return ""
        more = ", ..." if len(self.pieces) > 1 else ""
        return f" rows {self.pieces[0].start}:{self.pieces[0].stop}{more}"


def _summary(names: list[str]) -> str:
    """Several names that differ in one place, as one with `*` there."""
    start = len(_shared(names[0], names[-1]))
    end = _shared(names[0][start:][::-1], names[-1][start:][::-1])[::-1]
    return f"{names[0][:start]}*{end}"


def _shared(first: str, second: str) -> str:
    """What two strings begin with alike."""
    pairs = zip(first, second, strict=False)
    return "".join(a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
