"""GGUF files put together by struct.pack alone, valid and otherwise."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32 = range(7)
BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(7, 13)
CODES = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}
F32, F16, Q4_0, Q8_0, I8, I32, I64, F64 = 0, 1, 2, 8, 24, 26, 27, 28


@dataclass(frozen=True)
class Layout:
    """How numbers stand in a file: the format's version, and "<" (little-endian) or ">" (big)."""

    version: int = 3
    order: str = "<"

    def pack(self, codes: str, *values: float) -> bytes:
        return struct.pack(self.order + codes, *values)

    def size(self, count: int) -> bytes:
        """A count or a length: 64 bits, and 32 in version 1."""
        return self.pack("I" if self.version == 1 else "Q", count)

    def string(self, text: bytes | str) -> bytes:
        encoded = text.encode() if isinstance(text, str) else text
        return self.size(len(encoded)) + encoded

    def pair(self, key: bytes | str, kind: int, value: bytes) -> bytes:
        return self.string(key) + self.pack("I", kind) + value

    def number(self, key: bytes | str, kind: int, value: float) -> bytes:
        return self.pair(key, kind, self.pack(CODES[kind], value))

    def array(self, key: bytes | str, kind: int, count: int, elements: bytes) -> bytes:
        return self.pair(key, ARRAY, self.pack("I", kind) + self.size(count) + elements)

    def numbers(self, key: bytes | str, kind: int, values: Sequence[float]) -> bytes:
        return self.array(key, kind, len(values), self.pack(CODES[kind] * len(values), *values))

    def strings(self, key: bytes | str, texts: Sequence[bytes | str]) -> bytes:
        return self.array(key, STRING, len(texts), b"".join(map(self.string, texts)))

    def tensor(self, name: bytes | str, ne: Sequence[int], kind: int, *, offset: int = 0) -> bytes:
        dims = b"".join(self.size(n % (1 << 64)) for n in ne)
        tail = self.pack("IQ", kind % (1 << 32), offset)
        return self.string(name) + self.pack("I", len(ne)) + dims + tail

    def header(self, n_tensors: int, n_pairs: int) -> bytes:
        counts = self.size(n_tensors) + self.size(n_pairs)
        return b"GGUF" + self.pack("I", self.version) + counts

    def gguf(
        self,
        pairs: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        alignment: int = 32,
    ) -> bytes:
        head = self.header(len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
        return head + bytes(-len(head) % alignment) + data


def size(count: int, version: int = 3) -> bytes:
    return Layout(version).size(count)


def string(text: bytes | str, version: int = 3) -> bytes:
    return Layout(version).string(text)


def pair(key: bytes | str, kind: int, value: bytes, version: int = 3) -> bytes:
    return Layout(version).pair(key, kind, value)


def number(key: str, kind: int, value: float, version: int = 3) -> bytes:
    return Layout(version).number(key, kind, value)


def array(key: str, kind: int, count: int, elements: bytes, version: int = 3) -> bytes:
    return Layout(version).array(key, kind, count, elements)


def strings(key: str, texts: Sequence[bytes | str], version: int = 3) -> bytes:
    return Layout(version).strings(key, texts)


def tensor(
    name: bytes | str, ne: Sequence[int], kind: int, *, offset: int = 0, version: int = 3
) -> bytes:
    return Layout(version).tensor(name, ne, kind, offset=offset)


def header(n_tensors: int, n_pairs: int, version: int = 3) -> bytes:
    return Layout(version).header(n_tensors, n_pairs)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    return Layout(version).gguf(pairs, tensors, data, alignment=alignment)
