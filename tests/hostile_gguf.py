"""Recipes of hostile GGUF containers, for each version and byte order: by name, what the file holds
and what must come of it. The tests run them, and the fuzz targets start from them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf_bytes as gb

LAYOUTS = [gb.Layout(version, order) for version in (1, 2, 3) for order in "<>"]


@dataclass(frozen=True)
class Case:
    """A file, and a piece of the sentence that refuses it; None where it is odd and harmless."""

    content: bytes
    refused: str | None = None
    # Larger files: so many bytes, which are zero where no piece (at, bytes) says otherwise.
    size: int | None = None
    pieces: tuple[tuple[int, bytes], ...] = ()

    @property
    def nbytes(self) -> int:
        return len(self.content) if self.size is None else self.size

    def write(self, path: Path) -> None:
        """The file; zeros that `size` adds take no room on the disk."""
        with path.open("wb") as stream:
            stream.write(self.content)
            for at, piece in self.pieces:
                stream.seek(at)
                stream.write(piece)
            if self.size is not None:
                stream.truncate(self.size)


Build = Callable[[gb.Layout], bytes]


def one_pair(g: gb.Layout, kind: int, value: bytes) -> bytes:
    return g.gguf([g.pair("k", kind, value)])


def one_tensor(
    g: gb.Layout, ne: tuple[int, ...], kind: int = gb.F32, *, offset: int = 0, data: int = 64
) -> bytes:
    return g.gguf([], [g.tensor("t", ne, kind, offset=offset)], bytes(data))


def two_tensors(g: gb.Layout, first: tuple[int, int], second: tuple[int, int]) -> bytes:
    """Two tensors of (elements, offset) each, in 256 bytes of data."""
    pairs = (("a", *first), ("b", *second))
    tensors = [g.tensor(name, (n,), gb.F32, offset=offset) for name, n, offset in pairs]
    return g.gguf([], tensors, bytes(256))


def aligned(g: gb.Layout, value: int, kind: int = gb.UINT32) -> bytes:
    number = g.number("general.alignment", kind, value)
    alignment = value if 1 <= value <= 1 << 20 else 32
    return g.gguf([number], [g.tensor("t", (4,), gb.F32)], bytes(64), alignment=alignment)


def bare_string(g: gb.Layout, length: int) -> bytes:
    return g.header(0, 1) + g.pair("k", gb.STRING, g.size(length) + b"abc")


def bare_array(g: gb.Layout, kind: int, count: int, content: bytes = b"") -> bytes:
    return g.header(0, 1) + g.array("k", kind, count, content)


def nested(g: gb.Layout, depth: int) -> bytes:
    levels = (g.pack("I", gb.ARRAY) + g.size(1)) * depth
    return g.header(0, 1) + g.pair("k", gb.ARRAY, levels + g.pack("I", gb.UINT8) + g.size(0))


def keyed(g: gb.Layout, key: bytes) -> bytes:
    return g.gguf([g.pair(key, gb.UINT8, b"\1")])


def named(g: gb.Layout, name: bytes) -> bytes:
    return g.gguf([], [g.tensor(name, (1,), gb.F32)], bytes(32))


def of_version(g: gb.Layout, version: int) -> bytes:
    return b"GGUF" + g.pack("I", version) + g.header(0, 0)[8:]


def offset_before_the_data(g: gb.Layout, distance: int | None) -> bytes:
    """An offset that wraps to so many bytes before the data; None: to the file's first byte."""
    whole = one_tensor(g, (4,), data=0)
    return one_tensor(g, (4,), offset=2**64 - (len(whole) if distance is None else distance))


def wrapping_sums(g: gb.Layout, kind: int, ne: tuple[int, ...], nbytes: int, n: int) -> bytes:
    """Tensors one behind the other, whose offsets and sizes add up beyond 2^64."""
    offsets = [(i * nbytes) % 2**64 for i in range(n)]
    tensors = [g.tensor(f"t{i}", ne, kind, offset=offset) for i, offset in enumerate(offsets)]
    return g.gguf([], tensors, bytes(4096))


NOT_UTF8 = (
    b"\xff",
    b"a\x80",
    b"\xc0\xaf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xe2\x82",
    b"a\xc3",
)
NO_TYPES = (-1, 4, 5, 31, 32, 33, 36, 37, 38, 43, 999, 2**31 - 1, -(2**31))
LENGTHS = (2**64 - 1, 2**63, 2**63 - 1, 2**64 - 8, 2**32 - 1, 2**30, 4)
COUNTS = (2**59 + 1, 2**63, 2**64 - 1, 2**64 // 368 + 1, 2**32 - 1)

FRONT: dict[str, tuple[Build, str]] = {
    "empty file": (lambda g: b"", "magic"),
    "three bytes": (lambda g: b"GGU", "magic"),
    "magic of another format": (lambda g: b"GGML" + g.header(0, 0)[4:], "'GGUF'"),
    "magic reversed": (lambda g: b"FUGG" + g.header(0, 0)[4:], "'GGUF'"),
    **{
        f"version {version}": ((lambda g, v=version: of_version(g, v)), "version is")
        for version in (0, 4, 2**31, 2**32 - 1)
    },
    "no counts": (lambda g: g.header(0, 0)[:8], "number of tensors"),
    **{
        f"n_tensors {n}": ((lambda g, n=n: g.header(n, 0) + bytes(100)), f"claims {n} tensors")
        for n in COUNTS
    },
    **{
        f"n_kv {n}": ((lambda g, n=n: g.header(0, n) + bytes(100)), f"claims {n} metadata keys")
        for n in COUNTS
    },
    "one tensor less than it claims": (
        lambda g: g.header(2, 0) + one_tensor(g, (1,))[len(g.header(1, 0)) :],
        "tensor",
    ),
    "one key less than it claims": (
        lambda g: g.header(0, 2) + g.number("k", gb.UINT32, 1),
        "metadata key",
    ),
    "24 bytes claim 1 GiB of keys": (lambda g: g.header(0, 2**30 // 14), "metadata keys"),
    "24 bytes claim 1 GiB of tensors": (lambda g: g.header(2**30 // 25, 0), "tensors"),
}

KEYS: dict[str, tuple[Build, str]] = {
    **{
        f"string of {n} bytes": ((lambda g, n=n: bare_string(g, n)), f"claims {n} bytes")
        for n in LENGTHS
    },
    "string that wraps to the file's beginning": (
        lambda g: bare_string(g, 2**64 - len(bare_string(g, 0)) + 3),
        "claims",
    ),
    "key longer than the file": (
        lambda g: g.header(0, 1) + g.size(2**31) + bytes(40),
        "claims 2147483648 bytes",
    ),
    "key of 65536 bytes": (lambda g: keyed(g, b"k" * 65536), "1 to 65535"),
    "key empty": (lambda g: keyed(g, b""), "1 to 65535"),
    "key with NUL": (lambda g: keyed(g, b"general.alignment\0"), "NUL"),
    **{
        f"key of the bytes {key.hex()}": ((lambda g, key=key: keyed(g, key)), "UTF-8")
        for key in NOT_UTF8
    },
    "keys appear twice": (
        lambda g: g.gguf([g.number(key, gb.UINT32, 1) for key in ("k", "l", "k")]),
        "key 'k': it appears twice",
    ),
    # Their names would end the line of a message, and begin a terminal's escape sequence.
    "keys of control characters appear twice": (
        lambda g: g.gguf([g.number("k\x1b\x7f\x85\x9b31m\u2028\u2029", gb.UINT8, 1)] * 2),
        "it appears twice",
    ),
    "alignments appear twice": (
        lambda g: g.gguf([g.number("general.alignment", gb.UINT32, n) for n in (32, 64)]),
        "key 'general.alignment': it appears twice",
    ),
    **{
        f"value type {kind}": (
            (lambda g, kind=kind: one_pair(g, kind, bytes(16))),
            f"value type is {kind}",
        )
        for kind in (13, 2**31, 2**32 - 1)
    },
    "bool of 2": (lambda g: one_pair(g, gb.BOOL, b"\2"), "boolean is 2"),
}

ARRAYS: dict[str, tuple[Build, str]] = {
    "element type 13": (lambda g: bare_array(g, 13, 1, bytes(16)), "element type is 13"),
    "array of 2^60 strings": (lambda g: bare_array(g, gb.STRING, 2**60), "elements"),
    "array of 2^61 strings, 2^64 bytes of lengths": (
        lambda g: bare_array(g, gb.STRING, 2**61, bytes(64)),
        "elements",
    ),
    # 49 bytes, at which the gguf package's reader never ends.
    "array of 2^63 u8": (lambda g: bare_array(g, gb.UINT8, 2**63), "elements"),
    "array of -1 u8": (lambda g: bare_array(g, gb.UINT8, 2**64 - 1, bytes(8)), "elements"),
    "array of 2^32-1 u8": (lambda g: bare_array(g, gb.UINT8, 2**32 - 1, bytes(8)), "elements"),
    "array of 2^61 u64": (lambda g: bare_array(g, gb.UINT64, 2**61, bytes(8)), "elements"),
    "array of 2^62 f32": (lambda g: bare_array(g, gb.FLOAT32, 2**62, bytes(8)), "elements"),
    "array of 2^30 f32": (lambda g: bare_array(g, gb.FLOAT32, 2**30, bytes(8)), "elements"),
    "array with a string too long": (
        lambda g: bare_array(
            g,
            gb.STRING,
            3,
            g.string("a") + g.size(2 ** (32 if g.version == 1 else 64) - 9) + bytes(64),
        ),
        "claims",
    ),
    "array that ends early": (
        lambda g: bare_array(g, gb.STRING, 2, g.string("a" * 20)),
        "inside a string",
    ),
    **{
        f"arrays nested {depth} deep": ((lambda g, depth=depth: nested(g, depth)), "of arrays")
        for depth in (1, 2, 3000)
    },
    "array of arrays, empty": (lambda g: bare_array(g, gb.ARRAY, 0), "of arrays"),
    "bool of 255 in an array": (
        lambda g: one_pair(g, gb.ARRAY, g.pack("I", gb.BOOL) + g.size(3) + b"\1\0\xff"),
        "boolean is 255",
    ),
}

ALIGNMENTS: dict[str, tuple[Build, str]] = {
    **{
        f"alignment {n}": ((lambda g, n=n: aligned(g, n)), "power of two")
        for n in (0, 3, 31, 33, 2**32 - 1)
    },
    # A power of two, but the data then begin beyond the file.
    "alignment 2^31": (lambda g: aligned(g, 2**31), "beyond the file"),
    **{
        f"alignment of value type {kind}": ((lambda g, kind=kind: aligned(g, 1, kind)), "UINT32")
        for kind in gb.CODES
        if kind != gb.UINT32
    },
    "alignment a string": (
        lambda g: g.gguf([g.pair("general.alignment", gb.STRING, g.string("32"))]),
        "UINT32",
    ),
    "alignment strings": (
        lambda g: g.gguf([g.strings("general.alignment", ["32"])]),
        "an array of STRING",
    ),
    "alignment an array": (
        lambda g: g.gguf([g.numbers("general.alignment", gb.UINT32, [32])]),
        "an array of UINT32",
    ),
}

SHAPES: dict[str, tuple[Build, str]] = {
    **{
        f"n_dims {n}": ((lambda g, n=n: one_tensor(g, (1,) * n)), f"{n} dimensions")
        for n in (5, 100)
    },
    **{
        f"n_dims {n}": (
            (lambda g, n=n: g.header(1, 0) + g.string("t") + g.pack("I", n) + bytes(64)),
            f"{n} dimensions",
        )
        for n in (2**31, 2**32 - 1)
    },
    "ne 0": (lambda g: one_tensor(g, (4, 0)), "dimension 1 is 0"),
    "ne 0 of rows": (lambda g: one_tensor(g, (0,)), "dimension 0 is 0"),
    "ne -1": (lambda g: one_tensor(g, (-1,)), "dimension 0 is -1"),
    "ne -2^63": (lambda g: one_tensor(g, (4, -(2**63))), "dimension 1 is -9223372036854775808"),
    "ne wraps to 2 bytes": (lambda g: one_tensor(g, (5124095576030431008,), gb.Q4_0), "larger"),
    "ne wraps to -2": (lambda g: one_tensor(g, (2**63 - 1, 2, 1, 1), gb.I8), "larger"),
    "ne wraps to 0": (lambda g: one_tensor(g, (2**62,), gb.F32), "larger"),
    "ne wraps in the rows": (lambda g: one_tensor(g, (1, 2**32, 2**32), gb.I8), "larger"),
    "ne wraps to one row": (lambda g: one_tensor(g, (8, 2**59 + 1), gb.F32, data=4096), "larger"),
    "ne of 2^31 in all dimensions": (lambda g: one_tensor(g, (2**31,) * 4, gb.I8), "larger"),
    "ne 2^32-1": (lambda g: one_tensor(g, (2**32 - 1,), gb.I8), "larger"),
    "ne no multiple of the block": (lambda g: one_tensor(g, (33,), gb.Q4_0), "no multiple of 32"),
    "ne one less than the block": (lambda g: one_tensor(g, (255,), 12), "no multiple of 256"),
    **{
        f"type id {kind}": (
            (lambda g, kind=kind: one_tensor(g, (256,), kind, data=4096)),
            "unknown",
        )
        for kind in NO_TYPES
    },
    "tensor name empty": (lambda g: named(g, b""), "1 to 63"),
    "tensor name of 64 bytes": (lambda g: named(g, b"t" * 64), "1 to 63"),
    "tensor name with NUL": (lambda g: named(g, b"t\0"), "NUL"),
    "tensor name no UTF-8": (lambda g: named(g, b"\xfe"), "UTF-8"),
    "tensor name longer than the file": (
        lambda g: g.header(1, 0) + g.size(2**31) + bytes(64),
        "claims 2147483648 bytes",
    ),
    "tensor names appear twice": (
        lambda g: g.gguf([], [g.tensor("t", (1,), gb.F32, offset=o) for o in (0, 32)], bytes(64)),
        "tensor 't': it appears twice",
    ),
}

OFFSETS: dict[str, tuple[Build, str]] = {
    "no data": (lambda g: one_tensor(g, (4,), data=0), "beyond the file"),
    "offset at the end": (lambda g: one_tensor(g, (4,), offset=64), "beyond the file"),
    "offset beyond the end": (lambda g: one_tensor(g, (4,), offset=2**40), "beyond the file"),
    "data that end beyond": (lambda g: one_tensor(g, (13,), offset=32), "beyond the file"),
    "offset misaligned": (lambda g: one_tensor(g, (4,), offset=16), "multiple of the alignment"),
    "offset misaligned by 1": (lambda g: one_tensor(g, (4,), offset=1), "multiple of the align"),
    "offset 2^63": (lambda g: one_tensor(g, (4,), offset=2**63), "beyond the file"),
    # What becomes of these where sums wrap: bytes of the header handed out as data.
    "offset 2^64-32": (lambda g: offset_before_the_data(g, 32), "beyond the file"),
    "offset 2^64-64": (lambda g: offset_before_the_data(g, 64), "beyond the file"),
    "offset at the header's beginning": (
        lambda g: offset_before_the_data(g, None),
        "beyond the file",
    ),
    "tensors at one place": (lambda g: two_tensors(g, (4, 32), (4, 32)), "'b': its data overlap"),
    "overlap by one number": (
        lambda g: two_tensors(g, (9, 0), (4, 32)),
        "tensor 'b': its data overlap those of tensor 'a'",
    ),
    "overlap backwards": (lambda g: two_tensors(g, (4, 32), (9, 0)), "its data overlap"),
    "tensor within another": (lambda g: two_tensors(g, (64, 0), (4, 96)), "its data overlap"),
    "sums of sizes beyond 2^64": (
        lambda g: wrapping_sums(g, gb.I8, (2**62,), 2**62, 5),
        "larger than the file",
    ),
    "sums of padded sizes beyond 2^64": (
        lambda g: wrapping_sums(g, gb.I8, (2**63 - 1,), 2**63, 3),
        "larger than the file",
    ),
    "sums of offsets beyond 2^64": (
        lambda g: wrapping_sums(g, gb.F32, (4,), 2**62, 5),
        "beyond the file",
    ),
}

ACCEPTED: dict[str, Build] = {
    "nothing in it": lambda g: g.header(0, 0),
    "bytes behind the header": lambda g: g.header(0, 0) + b"\xff" * 100,
    "empty string": lambda g: one_pair(g, gb.STRING, g.string("")),
    "string no UTF-8": lambda g: one_pair(g, gb.STRING, g.string(b"\xff\xfe\0")),
    "strings no UTF-8": lambda g: g.gguf([g.strings("k", [b"\xff", b"", b"\xed\xa0\x80"])]),
    "strings, all empty": lambda g: g.gguf([g.strings("k", [b""] * 1000)]),
    "empty array of each type": lambda g: g.gguf(
        [g.array(f"k{kind}", kind, 0, b"") for kind in (*gb.CODES, gb.STRING)]
    ),
    "key of 65535 bytes": lambda g: keyed(g, b"k" * 65535),
    "key at UTF-8's edges": lambda g: keyed(
        g, "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff".encode()
    ),
    "NaN and infinities": lambda g: g.gguf(
        [
            g.numbers("f32", gb.FLOAT32, [float("nan"), float("inf"), -0.0]),
            g.number("f64", gb.FLOAT64, float("nan")),
        ]
    ),
    **{f"alignment {n}": (lambda g, n=n: aligned(g, n)) for n in (1, 2, 8, 16, 64, 4096, 1 << 20)},
    "alignment 2^31 without tensors": lambda g: g.gguf(
        [g.number("general.alignment", gb.UINT32, 2**31)]
    ),
    "hole between tensors": lambda g: two_tensors(g, (4, 0), (4, 128)),
    "tensors in reverse": lambda g: two_tensors(g, (4, 64), (4, 0)),
    "tensor without dimensions": lambda g: one_tensor(g, ()),
    "tensor name of 63 bytes": lambda g: named(g, b"t" * 63),
    "NaN everywhere": lambda g: one_tensor(g, (16,))[:-64] + b"\xff" * 64,
    "block of NaN scale": lambda g: one_tensor(g, (32,), gb.Q8_0)[:-64] + b"\xff" * 64,
    "each tensor type there is": lambda g: g.gguf(
        [],
        [g.tensor(f"t{kind}", (256,), kind, offset=4096 * i) for i, kind in enumerate(TYPES)],
        bytes(4096 * len(TYPES)),
    ),
}

# ggml's ids that exist, in ggml.h.
TYPES = [kind for kind in range(43) if kind not in NO_TYPES]

REFUSED = FRONT | KEYS | ARRAYS | ALIGNMENTS | SHAPES | OFFSETS


def cases(layout: gb.Layout) -> dict[str, Case]:
    """All that the layout can express: version 1 has no counts beyond 32 bits."""
    found: dict[str, Case] = {}
    recipes = itertools.chain(
        ((name, build, sentence) for name, (build, sentence) in REFUSED.items()),
        ((name, build, None) for name, build in ACCEPTED.items()),
    )
    for name, build, sentence in recipes:
        try:
            found[name] = Case(build(layout), sentence)
        except struct.error:
            if layout.version != 1:
                raise
    return found


# What a header may hold, by a limit of ours: real ones have less than 40 MB.
LIMIT = 128 << 20


def _long_string(g: gb.Layout, length: int, sentence: str | None) -> Case:
    """A key, whose string has so many zeros, and another behind it."""
    front = g.header(0, 2) + g.pair("k", gb.STRING, g.size(length))
    end = len(front) + length
    tail = g.number("last", gb.UINT8, 7)
    return Case(front, sentence, end + len(tail), ((end, tail),))


def _long_token(g: gb.Layout, length: int, sentence: str | None) -> Case:
    front = g.header(0, 1) + g.array("tokens", gb.STRING, 3, g.string("a") + g.size(length))
    end = len(front) + length
    return Case(front, sentence, end + len(g.string("b")), ((end, g.string("b")),))


def _long_array(g: gb.Layout, kind: int, count: int, nbytes: int, sentence: str | None) -> Case:
    front = g.header(0, 1) + g.array("k", kind, count, b"")
    return Case(front, sentence, len(front) + nbytes)


def _long_tensors(g: gb.Layout, n: int, ne: int, sentence: str | None, size: int) -> Case:
    """So many tensors of I8 behind each other, and so much room for their data."""
    tensors = [g.tensor(f"t{i}", (ne,), gb.I8, offset=i * ne) for i in range(n)]
    front = g.gguf([], tensors)
    return Case(front, sentence, len(front) + size)


def sparse_cases(layout: gb.Layout) -> dict[str, Case]:
    """Files that keep what they claim, larger than memory or the disk: nearly all of them holes."""
    limit = str(LIMIT)
    big = 2**31 if layout.version == 1 else 2**40
    found = {
        "string of 2 GiB": _long_string(layout, 2**31, limit),
        "token of 2 GiB": _long_token(layout, 2**31, limit),
        "string as long as the limit": _long_string(layout, LIMIT, limit),
        f"string of {big} bytes": _long_string(layout, big, limit),
        f"array of {big} u8": _long_array(layout, gb.UINT8, big, big, limit),
        f"array of {big} bools": _long_array(layout, gb.BOOL, big, big, limit),
        f"array of {big // 8} f64": _long_array(layout, gb.FLOAT64, big // 8, big, limit),
        f"array of {big // 8} empty strings": _long_array(layout, gb.STRING, big // 8, big, limit),
        f"array of {big} u8 and half the file": _long_array(
            layout, gb.UINT8, big, big // 2, "claims"
        ),
        "a tensor of 1 GiB": _long_tensors(layout, 1, 2**30, None, 2**30),
        "tensors of 4 GiB": _long_tensors(layout, 4, 2**30, None, 2**32),
        "tensors of 4 GiB, one byte less": _long_tensors(layout, 4, 2**30, "beyond", 2**32 - 1),
    }
    if layout.version != 1:
        found["tensors of 2^41 bytes"] = _long_tensors(layout, 2, 2**40, None, 2**41)
        found["tensors of 2^42 bytes, half the file"] = _long_tensors(
            layout, 4, 2**40, "beyond", 2**41
        )
    return found
