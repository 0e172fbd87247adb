"""The binary form of importance-matrix files that llama-imatrix wrote before GGUF (.dat).

All numbers are little-endian: int32 number of tensors; for each its name (int32 length, bytes),
int32 number of calls, int32 number of values, and float32 values, each a mean of squares times the
number of calls; then, in newer files, int32 number of chunks and the data set's name (int32
length, bytes).

Source: what llama.cpp b11549 writes (tools/imatrix) and reads (common/imatrix-loader.cpp,
tools/quantize).
"""

from __future__ import annotations

import os
import struct
from io import BufferedReader
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phiggml.errors import FormatError

__all__ = ["MOST_BYTES", "DatContent", "read_dat"]

# Twice what the largest models of experts have: what a file claims beyond is not read.
MOST_BYTES = 4 << 30
_MOST_TENSORS = 1 << 17
_LEAST_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4


class DatContent(NamedTuple):
    """What such a file holds.

    Attributes:
        means: tensor name -> float32[n]; those of a tensor of experts one after the other, 1
            where an expert saw no data.
        n_chunks: how many chunks of text it was made of; 0 where the file does not say.
        datasets: the data set's name, if it has one.
    """

    means: dict[str, npt.NDArray[np.float32]]
    n_chunks: int
    datasets: tuple[str, ...]


def read_dat(stream: BufferedReader, path: str) -> DatContent:
    """Reads a file from its beginning.

    Args:
        stream: the open file.
        path: what messages call it.

    Returns:
        Its content; whether values are finite is not looked at.

    Raises:
        FormatError: it is none of this form, or cut off; .offset says where.
        OSError: it cannot be read.

    Cost:
        Memory of at most twice the file's size.
    """
    reader = _Reader(stream, path)
    n_tensors = reader.int32("the number of tensors")
    most = min(_MOST_TENSORS, (reader.size - 4) // _LEAST_ENTRY_BYTES)
    if not 1 <= n_tensors <= most:
        raise reader.fault(
            f"it claims importances of {n_tensors} tensors: 1 to {most:,} can be in such a file of "
            f"{reader.size:,} bytes. Make one with llama-imatrix",
            at=0,
        )
    if reader.size > MOST_BYTES:
        raise reader.fault(f"it holds {reader.size:,} bytes, more than {MOST_BYTES:,}", at=0)
    means: dict[str, npt.NDArray[np.float32]] = {}
    for _ in range(n_tensors):
        at = reader.offset
        name = reader.name()
        if name in means:
            raise reader.fault(f"{name!r} is there twice. Collect it anew", at=at)
        means[name] = reader.means(name)
    n_chunks = 0 if reader.ended else reader.count("the number of chunks", least=0)
    datasets = () if reader.ended else reader.dataset()
    if not reader.ended:
        left = reader.size - reader.offset
        raise reader.fault(f"{left:,} bytes follow its end. Collect it anew", at=reader.offset)
    return DatContent(means, n_chunks, datasets)


class _Reader:
    """Takes pieces off a file's front, none larger than what is left of it."""

    def __init__(self, stream: BufferedReader, path: str) -> None:
        stream.seek(0)
        self.size = os.fstat(stream.fileno()).st_size
        self.offset = 0
        self._stream = stream
        self._path = path

    @property
    def ended(self) -> bool:
        """Whether all has been read."""
        return self.offset == self.size

    def fault(self, message: str, *, at: int) -> FormatError:
        """What to raise of a fault at an offset."""
        return FormatError(f"imatrix: {self._path}: {message}.", path=self._path, offset=at)

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes."""
        left = self.size - self.offset
        taken = self._stream.read(nbytes) if nbytes <= left else b""
        if len(taken) < nbytes:
            raise self.fault(
                f"{what} takes {nbytes:,} bytes, and {left:,} are left: it is cut off, or no "
                "importance matrix. Copy or collect it anew",
                at=self.offset,
            )
        self.offset += nbytes
        return taken

    def int32(self, what: str) -> int:
        """The next number."""
        (number,) = struct.unpack("<i", self.take(4, what))
        return int(number)

    def count(self, what: str, *, least: int) -> int:
        """The next number, which must not be less than `least`."""
        at, number = self.offset, self.int32(what)
        if number < least:
            raise self.fault(f"{what} is {number}. Collect it anew", at=at)
        return number

    def name(self) -> str:
        """A tensor's name."""
        encoded = self.take(self.count("the length of a name", least=1), "a name")
        try:
            name = encoded.decode("utf-8")
        except UnicodeDecodeError:
            name = "\0"
        if not name.isprintable():
            at = self.offset - len(encoded)
            raise self.fault(
                f"a tensor's name is no text ({encoded[:20]!r}). Collect it anew", at=at
            )
        return name

    def means(self, name: str) -> npt.NDArray[np.float32]:
        """The importances of a tensor, float32[n]."""
        n_calls = self.count(f"{name!r}: the number of calls", least=0)
        n = self.count(f"{name!r}: the number of values", least=1)
        values = np.frombuffer(self.take(4 * n, f"{name!r}: {n:,} values"), "<f4")
        # Source: llama-quantize takes values without calls as they are.
        with np.errstate(all="ignore"):
            means: npt.NDArray[np.float32] = values.astype(np.float32) / np.float32(max(n_calls, 1))
        return means

    def dataset(self) -> tuple[str, ...]:
        """The data set's name, which any bytes may be; nothing where it is empty."""
        encoded = self.take(
            self.count("the length of the data set's name", least=0), "the data set's name"
        )
        return (encoded.decode("utf-8", "surrogateescape"),) if encoded else ()
