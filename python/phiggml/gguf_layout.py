"""Where the parts of a GGUF file lie: in order, without gaps, zeros between them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from phiggml.errors import FormatError
from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.gguf_fault import GGUFFault
from phiggml.gguf_part import aligned

__all__ = ["large_padding", "layout_faults"]

# Padding of as many bytes is work that takes time, like data.
_LARGE = _AT_ONCE = 1 << 20
_PAGE = 4096  # files have no smaller holes


def layout_faults(
    file: GGUFFile, advance: Callable[[int], None] | None = None
) -> Iterator[GGUFFault]:
    """What ggml refuses, or nobody writes, in a file whose structure is sound.

    Args:
        file: a single file, not the whole of a split model.
        advance: called with the size of each piece of large padding that was looked at; None
            leaves large padding alone.

    Yields:
        A fault for each tensor that is not at the padded end of the one before, for padding that
        is not zero, and for data that end too early or too late.

    Raises:
        FormatError: the file has become shorter since it was opened.
        OSError: it cannot be read.

    Cost:
        Padding is read; large holes in the file are not.

    Source:
        gguf_init_from_reader in ggml's gguf.cpp, which adds up the padded sizes.
    """
    with Path(file.path).open("rb", buffering=0) as raw:
        padding = _Padding(file, raw.fileno(), advance)
        yield from padding.faults(file.header_end, file.data_offset)
        expected = end = file.data_offset
        for tensor in file.tensors.values():
            if tensor.offset != expected:
                yield _displaced(file, tensor, expected)
            expected = _padded_end(tensor, file)
            end = max(end, expected)
            yield from padding.faults(tensor.offset + tensor.nbytes, expected)
    if file.nbytes > end:
        yield GGUFFault(
            f"{file.nbytes - end:,} bytes follow the last tensor's data, and belong to nothing. "
            "Write the file anew.",
            end,
            path=file.path,
        )
    elif file.nbytes < end and len(file.tensors) > 0:
        yield GGUFFault(
            f"the file ends {end - file.nbytes} bytes before its last tensor's padding does, and "
            "ggml refuses to load the data. Write the file anew.",
            file.nbytes,
            path=file.path,
        )


def large_padding(file: GGUFFile) -> int:
    """The bytes of large padding, for all of which layout_faults calls `advance`."""
    ends = [(file.header_end, file.data_offset)]
    ends += [(t.offset + t.nbytes, _padded_end(t, file)) for t in file.tensors.values()]
    sizes = (min(stop, file.nbytes) - start for start, stop in ends)
    return sum(size for size in sizes if size >= _LARGE)


def _padded_end(tensor: GGUFTensor, file: GGUFFile) -> int:
    return aligned(tensor.offset + tensor.nbytes, file.alignment)


def _displaced(file: GGUFFile, tensor: GGUFTensor, expected: int) -> GGUFFault:
    return GGUFFault(
        f"tensor {tensor.name!r}: its data begin at byte {tensor.offset}, and ggml wants them at "
        f"byte {expected}, right behind those of the tensor before it. Write the file anew.",
        tensor.offset,
        tensor.name,
        file.path,
    )


class _Padding:
    """Looks whether padding is zero."""

    def __init__(
        self, file: GGUFFile, descriptor: int, advance: Callable[[int], None] | None
    ) -> None:
        self._file = file
        self._descriptor = descriptor
        self._advance = advance

    def faults(self, start: int, stop: int) -> Iterator[GGUFFault]:
        stop = min(stop, self._file.nbytes)
        large = stop - start >= _LARGE
        if large and self._advance is None:
            return
        report = self._advance if large else None
        first = self._first_nonzero(start, stop, report)
        if first is not None:
            at, value = first
            yield GGUFFault(
                f"the padding up to byte {stop} is not zero: it holds {value}. "
                "Something may be hidden there; write the file anew.",
                at,
                path=self._file.path,
            )

    def _first_nonzero(
        self, start: int, stop: int, report: Callable[[int], None] | None
    ) -> tuple[int, int] | None:
        """Where the first byte is that is not zero, and what it is."""
        while start < stop:
            before = start
            start = min(self._behind_hole(start, stop), stop)
            piece = np.frombuffer(self._read(start, min(stop - start, _AT_ONCE)), np.uint8)
            nonzero = np.flatnonzero(piece)
            if report is not None:
                report((stop if nonzero.size else start + piece.size) - before)
            if nonzero.size:
                return start + int(nonzero[0]), int(piece[nonzero[0]])
            start += piece.size
        return None

    def _behind_hole(self, start: int, stop: int) -> int:
        """The next byte that may be other than zero."""
        if stop - start < _PAGE or not hasattr(os, "SEEK_DATA"):
            return start
        try:
            return os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError as error:
            # The hole lasts to the end, unless the file has lost that; or nobody knows of holes.
            hole = error.errno == errno.ENXIO and os.fstat(self._descriptor).st_size >= stop
            return stop if hole else start

    def _read(self, start: int, nbytes: int) -> bytes:
        piece = os.pread(self._descriptor, nbytes, start)
        if nbytes and not piece:
            raise FormatError(
                f"verify: {self._file.path}: it has become shorter meanwhile.",
                path=self._file.path,
            )
        return piece
