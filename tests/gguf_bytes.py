"""GGUF files put together by struct.pack alone, valid and otherwise."""

from __future__ import annotations

import struct
from collections.abc import Sequence

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


def size(count: int, version: int = 3) -> bytes:
    """A count or a length: 64 bits, and 32 in version 1."""
    return struct.pack("<I" if version == 1 else "<Q", count)


def string(text: bytes | str, version: int = 3) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return size(len(encoded), version) + encoded


def pair(key: bytes | str, kind: int, value: bytes, version: int = 3) -> bytes:
    return string(key, version) + struct.pack("<I", kind) + value


def number(key: str, kind: int, value: float, version: int = 3) -> bytes:
    return pair(key, kind, struct.pack("<" + CODES[kind], value), version)


def array(key: str, kind: int, count: int, elements: bytes, version: int = 3) -> bytes:
    return pair(key, ARRAY, struct.pack("<I", kind) + size(count, version) + elements, version)


def strings(key: str, texts: Sequence[bytes | str], version: int = 3) -> bytes:
    return array(key, STRING, len(texts), b"".join(string(t, version) for t in texts), version)


def tensor(
    name: bytes | str, ne: Sequence[int], kind: int, *, offset: int = 0, version: int = 3
) -> bytes:
    dims = b"".join(size(n % (1 << 64), version) for n in ne)
    tail = struct.pack("<IQ", kind % (1 << 32), offset)
    return string(name, version) + struct.pack("<I", len(ne)) + dims + tail


def header(n_tensors: int, n_pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<I", version) + size(n_tensors, version) + size(n_pairs, version)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = header(len(tensors), len(pairs), version) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
