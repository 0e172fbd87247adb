"""One safetensors file: a header that is checked whole before any byte of data, and its writing.

Source: the format as the README of huggingface/safetensors gives it: a little-endian u64 header
length, that many bytes of JSON, then the data, covered by the tensors without overlap or hole.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.conversion.jsonfile import parse_object, regular_size
from phiggml.errors import FormatError, InputError

__all__ = ["SafetensorsFile", "StoredTensor", "encode_header", "tensor_bytes"]

# The format allows 100 MB, which take 20 s and 1.5 GB to check; those of models have below 10.
HEADER_LIMIT = 32 << 20
_LENGTH_BYTES = 8
# Data begin at a multiple of this, as the format asks of those who write it.
_ALIGNMENT = 8
# Ctrl-C waits for each single read.
_ONE_READ = 4 << 20

_DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
        "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
        "U32": 32, "I32": 32, "F32": 32,
        "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    }
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a checkpoint lies; `offset` counts from the start of the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A safetensors file whose header is read at once, and its data when they are asked for.

    Data are read, not mapped: their pages do not stay in the process, and a file that somebody
    truncates or writes to meanwhile raises instead of killing it.

    Args:
        path: the file.

    Raises:
        FormatError: the header breaks the format; `path` and `offset` say where.

    Cost:
        Reads the header only, and keeps the file open: one that is replaced by another of the
        same name meanwhile stays readable, as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        regular_size(path)
        stream = path.open("rb")
        self._stream: BinaryIO | None = stream
        self._close = weakref.finalize(self, stream.close)
        try:
            self._opened = os.fstat(stream.fileno())
            self._size = self._opened.st_size
            start, header = self._read_header(stream)
            self.metadata: Mapping[str, str] = MappingProxyType(self._take_metadata(header))
            tensors = {name: self._tensor(name, entry, start) for name, entry in header.items()}
            self._check_cover(tensors, start)
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(tensors)

    def data(
        self, tensor: StoredTensor, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns bytes [start, stop) of `tensor`, or all: uint8[stop - start], a copy.

        Raises:
            FormatError: the file has been made shorter or written to since its header was read.
            InputError: the bytes lie outside the tensor, or the file is closed.
        """
        if self._stream is None:
            raise InputError(f"read checkpoint: {self.path}: is closed. Open it again.")
        stop = tensor.nbytes if stop is None else stop
        if not 0 <= start <= stop <= tensor.nbytes:
            raise InputError(
                f"read checkpoint: {self.path}: tensor {tensor.name!r}: bytes [{start}, {stop}): "
                f"it has {tensor.nbytes}."
            )
        out = np.empty(stop - start, dtype=np.uint8)
        descriptor = self._stream.fileno()
        left, place = out.data, tensor.offset + start
        while len(left) > 0:
            count = os.preadv(descriptor, [left[:_ONE_READ]], place)
            if count == 0:
                break
            left, place = left[count:], place + count
        # After the reads: what was written before one of them shows in the time by now.
        now = os.fstat(descriptor)
        if len(left) > 0 or now.st_size < self._size:
            self._fail("was made shorter while it was read. Convert again from an unchanged file")
        if (now.st_size, now.st_mtime_ns) != (self._size, self._opened.st_mtime_ns):
            self._fail("was written to while it was read. Convert again from an unchanged file")
        return out

    def row_source(self) -> _core.pipeline.RowSource:
        """The file, for what reads rows of it on threads without Python.

        Raises:
            FormatError: it has been written to since its header was read.
            InputError: it is closed.
        """
        if self._stream is None:
            raise InputError(f"read checkpoint: {self.path}: is closed. Open it again.")
        source = _core.pipeline.source_of_file(self._stream.fileno(), str(self.path))
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._size, self._opened.st_mtime_ns):
            self._fail("was written to while it was read. Convert again from an unchanged file")
        return source

    def close(self) -> None:
        """Closes the file; closing again does nothing."""
        self._stream = None
        self._close()

    def _fail(self, sentence: str, offset: int = 0) -> NoReturn:
        raise FormatError(
            f"read checkpoint: {self.path}: {sentence}.", path=str(self.path), offset=offset
        )

    def _read_header(self, file: BinaryIO) -> tuple[int, dict[str, Any]]:
        length_bytes = file.read(_LENGTH_BYTES)
        if len(length_bytes) < _LENGTH_BYTES:
            self._fail(f"holds {self._size} bytes; a safetensors file has at least 10")
        length = int.from_bytes(length_bytes, "little")
        if length > HEADER_LIMIT:
            self._fail(f"gives its header as {length} bytes; at most {HEADER_LIMIT} are read")
        if length > self._size - _LENGTH_BYTES:
            self._fail(
                f"gives its header as {length} bytes, but only {self._size - _LENGTH_BYTES} follow"
            )
        start = _LENGTH_BYTES + length
        header = parse_object(file.read(length), self.path, offset=_LENGTH_BYTES, unique=True)
        return start, header

    def _take_metadata(self, header: dict[str, Any]) -> dict[str, str]:
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            self._fail("__metadata__ must map strings to strings", _LENGTH_BYTES)
        return metadata

    def _tensor(self, name: str, entry: Any, start: int) -> StoredTensor:
        def fail(rule: str) -> NoReturn:
            self._fail(f"tensor {name!r}: {rule}", _LENGTH_BYTES)

        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            fail("its entry must hold dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
            fail(f"dtype {dtype!r} is unknown")
        if not _is_counts(shape):
            fail(f"shape {shape!r} must be a list of whole numbers >= 0")
        if not _is_counts(offsets) or len(offsets) != 2:
            fail(f"data_offsets {offsets!r} must be two whole numbers >= 0")
        begin, end = offsets
        available = self._size - start
        if not begin <= end <= available:
            fail(f"data_offsets [{begin}, {end}] lie outside the {available} bytes of data")
        bits = math.prod(shape) * _DTYPE_BITS[dtype]
        if bits != (end - begin) * 8:
            fail(
                f"dtype {dtype} and shape {shape} need {bits / 8:.15g} bytes, "
                f"data_offsets give {end - begin}"
            )
        return StoredTensor(name, self.path, dtype, tuple(shape), start + begin, end - begin)

    def _check_cover(self, tensors: Mapping[str, StoredTensor], start: int) -> None:
        end = start
        for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
            if tensor.offset < end:
                self._fail(
                    f"tensor {tensor.name!r}: its data overlap another tensor's", tensor.offset
                )
            if tensor.offset > end:
                self._fail(
                    f"tensor {tensor.name!r}: a hole of {tensor.offset - end} bytes "
                    "lies before its data",
                    end,
                )
            end = tensor.offset + tensor.nbytes
        if end != self._size:
            self._fail(f"{self._size - end} bytes at the end belong to no tensor", end)


def _is_counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a dtype of whole bytes."""
    return math.prod(shape) * _DTYPE_BITS[dtype] // 8


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Everything of a safetensors file that stands before the data.

    Args:
        tensors: name, dtype and shape of each, in the order of their data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
