"""The files that the tests of editing begin with, put together by struct.pack."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import gguf_bytes as gb
from gguf_seen import PADDING

LITTLE, OLD, BIG = gb.Layout(3), gb.Layout(1), gb.Layout(3, ">")

TOKENS = [f"token{i}" * 8 for i in range(200)]  # so that the header has several pages

DATA = struct.pack("<32f", *range(32)) + bytes(range(32))

DATA_ANYWHERE = {False: DATA, True: struct.pack(">32f", *range(32)) + bytes(range(32))}


def room(count: int) -> bytes:
    return gb.pair(PADDING, gb.STRING, gb.string(b" " * count))


def text(key: str, value: str) -> bytes:
    return gb.pair(key, gb.STRING, gb.string(value))


def pairs(layout: gb.Layout = LITTLE) -> list[bytes]:
    return [
        layout.pair("general.architecture", gb.STRING, layout.string("phi3")),
        layout.number("a.count", gb.UINT32, 7),
        layout.number("a.rate", gb.FLOAT32, 0.5),
        layout.strings("tokens", TOKENS),
        layout.numbers("numbers", gb.INT16, range(9)),
        layout.number("flag", gb.BOOL, True),
        layout.pair("last", gb.STRING, layout.string("end")),
    ]


def tensors(layout: gb.Layout = LITTLE, names: Sequence[str] = ("one", "two")) -> list[bytes]:
    return [
        layout.tensor(names[0], (8, 4), gb.F32),
        layout.tensor(names[1], (32,), gb.I8, offset=128),
    ]


def edited_pairs(changes: dict[int, bytes | None], added: Sequence[bytes] = ()) -> list[bytes]:
    new = [changes.get(i, pair) for i, pair in enumerate(pairs())]
    return [*(pair for pair in new if pair is not None), *added]
