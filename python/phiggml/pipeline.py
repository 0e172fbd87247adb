"""Rows of a model's tensors, converted on all threads while others are read and written."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.quant import QuantType
from phiggml.recipe import PlannedTensor
from phiggml.source import SourceTensor

__all__ = ["Chunk", "PipelineSettings", "RowConversion"]

Importances = Mapping[str, npt.NDArray[np.float32]]
# Two chunks on their way for each thread, one that is written and one that was: large enough that
# handing them over costs nothing, small enough to stay in caches.
_MEMORY_OF_A_CHUNK = 2 << 20
_MOST_MEMORY = (1 << 64) - 1


@dataclass(frozen=True)
class PipelineSettings:
    """How the work is done.

    Attributes:
        threads: how many convert.
        max_memory: bytes of rows on their way at most; None: 2 MiB for each of the
            chunks that keep all threads busy.
        measure_error: whether to measure what quantizing does to each tensor.
    """

    threads: int
    max_memory: int | None = None
    measure_error: bool = False

    @property
    def memory(self) -> int:
        if self.max_memory is not None:
            return min(self.max_memory, _MOST_MEMORY)
        return (2 * self.threads + 2) * _MEMORY_OF_A_CHUNK


@dataclass(frozen=True)
class Chunk:
    """Rows of a tensor as they will be written.

    Attributes:
        tensor: its place in the plan.
        rows: uint8[nbytes], whole rows one after the other.
    """

    tensor: int
    rows: npt.NDArray[np.uint8]


class RowConversion:
    """The rows of all planned tensors, converted in their order while they are pulled.

    Args:
        planned: what each becomes.
        sources: by name, where their rows lie.
        imatrix: by name, float32[experts, n].
        settings: threads and memory.

    Attributes:
        read_seconds: that all threads together have spent reading, as far as is known.
        convert_seconds: the same of converting.
    """

    def __init__(
        self,
        planned: Sequence[PlannedTensor],
        sources: Mapping[str, SourceTensor],
        imatrix: Importances,
        *,
        settings: PipelineSettings,
    ) -> None:
        self.read_seconds = 0.0
        self.convert_seconds = 0.0
        self._planned = planned
        self._sources = sources
        self._imatrix = imatrix
        self._settings = settings
        self._squares: dict[str, _Squares] = {}

    def chunks(self) -> Generator[Chunk, None, None]:
        """Converts.

        Yields:
            Chunk after chunk, while threads work on the next ones.

        Raises:
            InputError: a row takes more than max_memory; numbers are not finite, or too large for
                their type.
            FormatError: a source has been written to, or made shorter, since it was opened.
            OSError: it cannot be read.
            SessionError: the process was forked off since the first was pulled, or it ends.

        Cost:
            The GIL is released while it waits. Memory is bounded by the settings. Of a source
            whose rows do not lie in a file as they are (a big-endian one) tensors are read some
            rows at a time by the calling thread.
        """
        planned, sources, imatrix = self._planned, self._sources, self._imatrix
        if all(sources[tensor.name].runs is not None for tensor in planned):
            tensors = [_tensor(t, sources[t.name].runs or (), imatrix) for t in planned]
            yield from self._pulled(tensors, first=0)
            return
        for place, tensor in enumerate(planned):
            for start, stop, importances in _ranges(tensor, imatrix, self._settings.memory // 2):
                rows = sources[tensor.name].read(start, stop)
                run = _core.pipeline.RowRun(
                    source=_core.pipeline.source_of_array(rows, tensor.name),
                    offset=0,
                    n_rows=stop - start,
                    type_id=QuantType(tensor.source_type).id,
                )
                part = _described(tensor, [run], importances, stop - start)
                yield from self._pulled([part], first=place)

    def errors(self) -> dict[str, float]:
        """Of each tensor that changed its type, as far as its chunks were pulled.

        Returns:
            Tensor name -> rms error divided by the rms of the numbers, both as they were written
            and as they were (0 where all numbers are 0 and stay so); nothing unless they are
            measured.
        """
        return {
            tensor.name: self._squares[tensor.name].ratio
            for tensor in self._planned
            if tensor.name in self._squares and tensor.type != tensor.source_type
        }

    def _pulled(
        self, tensors: list[_core.pipeline.Tensor], *, first: int
    ) -> Generator[Chunk, None, None]:
        """Chunks of tensors of which the first has this place in the plan."""
        settings = self._settings
        pipeline = _core.pipeline.Pipeline(
            tensors=tensors,
            threads=settings.threads,
            max_memory=settings.memory,
            measure_error=settings.measure_error,
        )
        try:
            while (found := pipeline.next()) is not None:
                place, rows = found
                yield Chunk(first + place, rows)
        finally:
            pipeline.close()
            reading, converting = pipeline.seconds()
            self.read_seconds += reading
            self.convert_seconds += converting
            if settings.measure_error:
                for place, sums in enumerate(pipeline.error_sums(), first):
                    squares = self._squares.setdefault(self._planned[place].name, _Squares())
                    squares.error += sums["squared_error"]
                    squares.value += sums["squared_value"]


@dataclass
class _Squares:
    """Sums of the squares of differences and of numbers."""

    error: float = 0.0
    value: float = 0.0

    @property
    def ratio(self) -> float:
        if not self.value:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.value)


def _tensor(
    planned: PlannedTensor, runs: Sequence[_core.pipeline.RowRun], imatrix: Importances
) -> _core.pipeline.Tensor:
    copied = planned.type == planned.source_type
    importances = None if copied else imatrix.get(planned.name)
    return _described(planned, runs, importances, _rows_of_expert(planned))


def _rows_of_expert(planned: PlannedTensor) -> int:
    return planned.shape[-2] if len(planned.shape) > 1 else 1


def _described(
    planned: PlannedTensor,
    runs: Sequence[_core.pipeline.RowRun],
    importances: npt.NDArray[np.float32] | None,
    rows_of_expert: int,
) -> _core.pipeline.Tensor:
    return _core.pipeline.Tensor(
        name=planned.name,
        type_id=QuantType(planned.type).id,
        n_per_row=planned.shape[-1],
        runs=runs,
        imatrix=importances,
        rows_of_expert=rows_of_expert,
    )


def _ranges(
    planned: PlannedTensor, imatrix: Importances, memory: int
) -> Iterator[tuple[int, int, npt.NDArray[np.float32] | None]]:
    """Ranges of rows that fit into so much memory; none spans two experts."""
    rows = math.prod(planned.shape[:-1])
    importances = None if planned.type == planned.source_type else imatrix.get(planned.name)
    unit = rows if importances is None else _rows_of_expert(planned)
    step = max(1, memory * rows // (planned.source_nbytes + planned.nbytes))
    for expert, first in enumerate(range(0, rows, unit)):
        row = None if importances is None else importances[expert]
        for start in range(first, first + unit, step):
            yield start, min(start + step, first + unit), row
