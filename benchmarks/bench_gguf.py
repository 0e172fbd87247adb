"""Opening GGUF files of large vocabularies, beside ggml's C reader and the gguf package.

The files are made here: as many tokens as are asked for, of the lengths that real ones have, with
scores, token types, merges, and the tensors of 32 layers (of few numbers, for no reader looks at
them). All readers are timed in one run, in turn; the gguf package, which needs seconds, in fewer
rounds. Memory is that of a process which opens one file: how much more it has afterwards, and at
most in between. ggml's C reader is that of build/stock, made by tools/build_stock.sh.

    python benchmarks/bench_gguf.py [--tokens 262144 32064] [--rounds 15] [--package-rounds 2]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import phiggml as pg
from machine import describe

STOCK = Path(__file__).resolve().parent.parent / "build/stock/build/bin/libggml-base.so"
TOKENS = "tokenizer.ggml.tokens"
N_LAYER = 32
PARTS = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
# Milliseconds and MB, by number of tokens: what we promise.
TARGETS = {262144: (15.0, 40.0), 32064: (2.0, 40.0)}
LIST_TARGET = 20.0


class InitParams(ctypes.Structure):
    """struct gguf_init_params of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@cache
def stock() -> ctypes.CDLL:
    library = ctypes.CDLL(str(STOCK))
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_get_n_kv.argtypes = library.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]
    library.gguf_get_n_kv.restype = library.gguf_get_n_tensors.restype = ctypes.c_int64
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.gguf_free.restype = None
    return library


def words(n: int, seed: int) -> list[str]:
    """Tokens as a byte-pair vocabulary has them: 1 to 20 characters, all different."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.gamma(4.0, 1.6, n).astype(int), 1, 20)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz·éüжд中"))
    drawn = letters[random.integers(0, len(letters), int(lengths.sum()))]
    ends = np.cumsum(lengths)
    text = "".join(drawn.tolist())
    plain = [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    # Short ones repeat: a number makes them differ.
    seen: set[str] = set()
    for i, word in enumerate(plain):
        plain[i] = f"{word}{i:x}" if word in seen else word
        seen.add(plain[i])
    return plain


def make(path: Path, n_tokens: int) -> None:
    tokens = words(n_tokens, 0)
    halves = words(2 * n_tokens, 1)
    with pg.GGUFWriter(path) as writer:
        metadata = writer.metadata
        metadata["general.architecture"] = "phi3"
        metadata["phi3.block_count"] = N_LAYER
        metadata["tokenizer.ggml.model"] = "gpt2"
        metadata[TOKENS] = tokens
        metadata["tokenizer.ggml.scores"] = -np.arange(n_tokens, dtype=np.float32)
        metadata["tokenizer.ggml.token_type"] = np.ones(n_tokens, np.int32)
        metadata["tokenizer.ggml.merges"] = [
            f"{a} {b}" for a, b in zip(halves[::2], halves[1::2], strict=True)
        ]
        metadata["tokenizer.ggml.eos_token_id"] = 0
        small = np.zeros((2, 32), np.float32)
        writer.add_tensor("token_embd.weight", small)
        for layer in range(N_LAYER):
            for part in PARTS:
                writer.add_tensor(f"blk.{layer}.{part}.weight", small)


def open_ours(path: str) -> tuple[Any, int, int]:
    file = pg.GGUFFile(path)
    return file, len(file.metadata), len(file.tensors)


def open_stock(path: str) -> tuple[Any, int, int]:
    context = stock().gguf_init_from_file(path.encode(), InitParams(True, None))
    return context, stock().gguf_get_n_kv(context), stock().gguf_get_n_tensors(context)


def open_package(path: str) -> tuple[Any, int, int]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    n_keys = sum(not name.startswith("GGUF.") for name in reader.fields)
    return reader, n_keys, len(reader.tensors)


def close(name: str, handle: Any) -> None:
    if name == "phiggml":
        handle.close()
    elif name == "ggml":
        stock().gguf_free(handle)


READERS: dict[str, Callable[[str], tuple[Any, int, int]]] = {
    "phiggml": open_ours,
    "ggml": open_stock,
    "gguf": open_package,
}


def seconds(name: str, path: str, counts: tuple[int, int]) -> float:
    """Of one opening, its keys and tensors counted."""
    start = time.perf_counter()
    handle, n_keys, n_tensors = READERS[name](path)
    elapsed = time.perf_counter() - start
    assert (n_keys, n_tensors) == counts, (name, n_keys, n_tensors)
    close(name, handle)
    return elapsed


def list_seconds(path: str, n_tokens: int) -> float:
    with pg.GGUFFile(path) as file:
        start = time.perf_counter()
        tokens = list(file.metadata[TOKENS])
        elapsed = time.perf_counter() - start
        assert len(tokens) == n_tokens
        return elapsed


def status_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def grow(name: str, small: str, path: str) -> None:
    """In a process of its own: prints the growth of memory by one opening, and at most."""
    close(name, READERS[name](small)[0])  # what is loaded on first use is none of the file's
    Path("/proc/self/clear_refs").write_text("5")
    before = status_megabytes("VmRSS")
    handle, _, _ = READERS[name](path)
    after, most = status_megabytes("VmRSS"), status_megabytes("VmHWM")
    close(name, handle)
    print(json.dumps([after - before, most - before]))


def growth(name: str, small: Path, path: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--grow", name, str(small), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after, most = json.loads(result.stdout)
    return after, most


def verdict(what: str, value: float, target: float, unit: str, *, at_least: bool = False) -> None:
    met = value >= target if at_least else value <= target
    relation = ">=" if at_least else "<="
    print(f"  {what}: {value:.2f}{unit}, target {relation} {target:g}{unit}: ", end="")
    print("met" if met else "MISSED")


def compare(folder: Path, n_tokens: int, rounds: int, package_rounds: int) -> None:
    path, small = folder / f"{n_tokens}.gguf", folder / f"{n_tokens}-small.gguf"
    make(path, n_tokens)
    make(small, 100)
    names = [name for name in READERS if name != "ggml" or STOCK.exists()]
    _, n_keys, n_tensors = open_ours(str(path))
    times: dict[str, list[float]] = {name: [] for name in names}
    listing: list[float] = []
    for i in range(rounds):
        for name in names:
            if name != "gguf" or i < package_rounds:
                times[name].append(seconds(name, str(path), (n_keys, n_tensors)))
        listing.append(list_seconds(str(path), n_tokens))
    memory = {name: growth(name, small, path) for name in names}

    header = path.stat().st_size / 2**20
    print(f"\n{n_tokens} tokens, as many merges, {n_tensors} tensors, {header:.1f} MB")
    heads = ("open ms, min", "median", "ratio", "MB more", "at most")
    print("{:10} {:>13} {:>9} {:>8} {:>9} {:>9}".format("reader", *heads))
    ours = statistics.median(times["phiggml"])
    for name in names:
        median = statistics.median(times[name])
        print(
            f"{name:10} {min(times[name]) * 1e3:13.2f} {median * 1e3:9.2f} {median / ours:7.1f}x "
            f"{memory[name][0]:9.1f} {memory[name][1]:9.1f}"
        )
    listed = statistics.median(listing)
    print(f"{'list()':10} {min(listing) * 1e3:13.2f} {listed * 1e3:9.2f}   of phiggml's tokens")
    if n_tokens in TARGETS:
        milliseconds, megabytes = TARGETS[n_tokens]
        verdict("open, median", ours * 1e3, milliseconds, " ms")
        verdict("memory, at most", memory["phiggml"][1], megabytes, " MB")
    ratio = statistics.median(times["gguf"]) / listed
    verdict("list(tokens) against gguf's open", ratio, LIST_TARGET, "x", at_least=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[262144, 32064])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--package-rounds", type=int, default=2, help="of the gguf package")
    parser.add_argument("--grow", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow:
        grow(*arguments.grow)
        return
    print(describe())
    if not STOCK.exists():
        print(f"{STOCK.name} is missing: run tools/build_stock.sh to compare with ggml's C reader.")
    with tempfile.TemporaryDirectory() as folder:
        for n_tokens in arguments.tokens:
            compare(Path(folder), n_tokens, arguments.rounds, arguments.package_rounds)


if __name__ == "__main__":
    main()
