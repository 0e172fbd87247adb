"""Saved states with something wrong, and what each must end in. As a program, it loads all of them
into one session, which still answers after each: `python hostile_states.py FOLDER`."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import phiggml as pg
from small_models import N_VOCAB, small_model

HEADER, DIGEST = 120, 32
VERSION, BUILD, TYPE_K, TYPE_V, FLAGS, N_TOKENS, N_EVALUATED, N_BYTES = (
    8,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
)
MODEL, LAYOUT = 56, 88
TOKENS = [5, 17, 42, 9, 11, 250, 7, 8, 30, 31, 32, 33]
NUMBERS = HEADER + 4 * len(TOKENS)
N_CTX, N_FLIPS = 64, 500

Change = Callable[[bytearray], object]


def signed(data: bytes) -> bytes:
    """With the hash that belongs to it, as an attacker would."""
    return data + hashlib.sha256(data).digest()


def put(offset: int, form: str, *values: int | float) -> Change:
    return lambda data: struct.pack_into(form, data, offset, *values)


def several(*changes: Change) -> Change:
    def change(data: bytearray) -> None:
        for one in changes:
            one(data)

    return change


def tokens_alone(data: bytearray) -> None:
    del data[NUMBERS:]
    struct.pack_into("<QQ", data, N_EVALUATED, 0, 0)


def of_tokens(n: int) -> Change:
    """Tokens alone, so many."""

    def change(data: bytearray) -> None:
        tokens_alone(data)
        struct.pack_into("<Q", data, N_TOKENS, n)
        data[HEADER:] = struct.pack("<i", 5) * n

    return change


def fewer_evaluated(data: bytearray) -> None:
    n_bytes = (len(data) - NUMBERS) // len(TOKENS) * 3
    del data[NUMBERS + n_bytes :]
    struct.pack_into("<QQ", data, N_EVALUATED, 3, n_bytes)


def shorter(data: bytearray) -> None:
    del data[-2:]
    struct.pack_into("<Q", data, N_BYTES, len(data) - NUMBERS)


def longer(data: bytearray) -> None:
    data += bytes(4096)
    struct.pack_into("<Q", data, N_BYTES, len(data) - NUMBERS)


def all_infinite(data: bytearray) -> None:
    data[NUMBERS:] = b"\x00\x7c" * ((len(data) - NUMBERS) // 2)


def all_large(data: bytearray) -> None:
    data[NUMBERS:] = b"\xff\x7b" * ((len(data) - NUMBERS) // 2)


WORKS = "works"
CASES: dict[str, tuple[Change, str]] = {
    "as saved": (lambda data: None, WORKS),
    "tokens alone": (tokens_alone, WORKS),
    "fewer evaluated": (fewer_evaluated, WORKS),
    "as many tokens as fit": (of_tokens(N_CTX - 1), WORKS),
    "no tokens": (of_tokens(0), WORKS),
    "beyond a line": (put(FLAGS, "<Q", 1), WORKS),
    "too many tokens": (of_tokens(N_CTX + 1), "SessionError"),
    "2^20 tokens": (of_tokens(1 << 20), "SessionError"),
    "another magic": (put(0, "<B", 0x8C), "FormatError"),
    "version 0": (put(VERSION, "<I", 0), "UnsupportedError"),
    "version 2": (put(VERSION, "<I", 2), "UnsupportedError"),
    "another build": (put(BUILD, "<I", 1), "SessionError"),
    "another type of keys": (put(TYPE_K, "<i", 8), "SessionError"),
    "a type that there is not": (put(TYPE_K, "<i", -7), "SessionError"),
    "another type of values": (put(TYPE_V, "<i", 1 << 30), "SessionError"),
    "transposed": (put(FLAGS, "<Q", 2), "SessionError"),
    "flags": (put(FLAGS, "<Q", 1 << 63), "FormatError"),
    "another model": (put(MODEL, "<Q", 0), "SessionError"),
    "another layout": (put(LAYOUT, "<Q", 0), "SessionError"),
    "2^63 tokens": (put(N_TOKENS, "<Q", 1 << 63), "FormatError"),
    "2^62 tokens": (put(N_TOKENS, "<Q", 1 << 62), "FormatError"),
    "2^64 - 1 bytes": (put(N_BYTES, "<Q", (1 << 64) - 1), "FormatError"),
    "sums that wrap": (
        several(put(N_TOKENS, "<Q", (1 << 62) + len(TOKENS))),
        "FormatError",
    ),
    "more evaluated than tokens": (put(N_EVALUATED, "<Q", len(TOKENS) + 1), "FormatError"),
    "2^64 - 1 evaluated": (put(N_EVALUATED, "<Q", (1 << 64) - 1), "FormatError"),
    "none evaluated": (put(N_EVALUATED, "<Q", 0), "FormatError"),
    "one fewer evaluated": (put(N_EVALUATED, "<Q", len(TOKENS) - 1), "FormatError"),
    "shorter": (shorter, "FormatError"),
    "longer": (longer, "FormatError"),
    "token -1": (put(HEADER, "<i", -1), "FormatError"),
    "token beyond": (put(NUMBERS - 4, "<i", N_VOCAB), "FormatError"),
    "token 2^31 - 1": (put(HEADER + 4, "<i", (1 << 31) - 1), "FormatError"),
    "NaN": (put(NUMBERS, "<e", float("nan")), "FormatError"),
    "-infinity at the end": (lambda data: put(len(data) - 2, "<e", -np.inf)(data), "FormatError"),
    "all infinite": (all_infinite, "FormatError"),
    "all large": (all_large, "works or fails"),
}


class Victim:
    """The session that everything is loaded into."""

    def __init__(self, model: pg.Model, path: Path) -> None:
        self._session = pg.Session(model, n_ctx=N_CTX, flash_attn=True, n_seq_max=2)
        self._path = path
        self._expected = self._session.eval([3, 4])

    def saved(self) -> bytes:
        self._session.reset()
        self._session.eval(TOKENS)
        self._session.save(self._path)
        return self._path.read_bytes()

    def ending(self, data: bytes, *, thorough: bool = False) -> str:
        """How the load ended; what follows must be as it always was."""
        session, found = self._session, WORKS
        self._path.write_bytes(data)
        if session.sequence_tokens(1).tolist() != [8, 9]:
            session.reset(sequence=1)
            session.eval([8, 9], sequence=1)
        try:
            session.load(self._path, sequence=1)
        except pg.PhiggmlError as error:
            assert session.sequence_tokens(1).tolist() == [8, 9], error
            if not str(error).startswith(f"load: {self._path}: "):
                return f"a sentence of another form: {error}"
            found = type(error).__name__
            if not thorough:
                return found
        try:
            session.eval([6], sequence=1)
        except pg.SessionError:
            found = "fails later"
        session.reset(sequence=1)
        if not np.array_equal(session.eval([3, 4], sequence=1), self._expected):
            return "other logits ever after"
        return found


def damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for n in range(len(whole)):
        yield f"cut {n}", whole[:n]
    body = whole[:-DIGEST]
    for n in range(NUMBERS):
        yield f"cut and signed {n}", signed(body[:n])
    for i in range(len(whole)):
        wrong = bytearray(whole)
        wrong[i] ^= 1 << (i % 8)
        yield f"flip {i}", bytes(wrong)
    for i in range(8 * HEADER):
        wrong = bytearray(body)
        wrong[i // 8] ^= 1 << (i % 8)
        yield f"header {i}", signed(wrong)
    random = np.random.default_rng(20240423)
    for i in range(N_FLIPS):
        wrong = bytearray(body)
        wrong[random.integers(HEADER, len(wrong))] ^= 1 << random.integers(8)
        yield f"signed {i}", signed(wrong)


def main(folder: Path) -> None:
    with pg.Model(small_model("phi3").write(folder / "model.gguf")) as model:
        victim = Victim(model, folder / "state")
        whole = victim.saved()
        for name, (change, _) in CASES.items():
            data = bytearray(whole[:-DIGEST])
            change(data)
            print(f"{name}\t{victim.ending(signed(data), thorough=True)}", flush=True)
        for name, wrong in damaged(whole):
            print(f"{name}\t{victim.ending(wrong)}", flush=True)
        for name, wrong in (("empty", b""), ("a model", (folder / "model.gguf").read_bytes())):
            print(f"{name}\t{victim.ending(wrong)}", flush=True)
        print(f"as saved again\t{victim.ending(whole, thorough=True)}")
    print("all done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
