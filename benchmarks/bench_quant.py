"""Speed of array quantization, per type, against ggml's own functions in the same run.

ggml is `ggml_quantize_chunk` and the type's `to_float`, called by ctypes in the library that the
package was built with. Runs are paired and interleaved; a ratio is the median over the pairs of
ggml's seconds over ours, so that a machine that others use too disturbs one thread's figures alike.
It does not spare those of all threads: "others" is how many cores other processes held while they
were taken, and where it is not near 0 they say little.
Calls of a few milliseconds gain little from threads even so: judge them by a larger --size.

    python benchmarks/bench_quant.py [--types Q4_K IQ2_XS] [--size 2097152] [--imatrix]
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe
from phiggml.runtime import library_folder

COLUMNS = 4096
Array = npt.NDArray[Any]


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    )


@cache
def ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_folder() / "libphiggml-ggml-base.so"))
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    library.ggml_version.restype = library.ggml_commit.restype = ctypes.c_char_p
    return library


@dataclass(frozen=True)
class Speed:
    """M elements/s: ggml's on one thread, ours on one and on all; and the ratios to ggml's."""

    ggml: float
    one: float
    all: float
    one_ratio: float
    all_ratio: float
    others: float

    def __str__(self) -> str:
        return (
            f"{self.ggml:8.1f} {self.one:8.1f} {self.all:8.1f} "
            f"{self.one_ratio:6.2f}x {self.all_ratio:6.2f}x {self.others:6.2f}"
        )


def busy_seconds() -> tuple[float, float]:
    """Processor seconds that the whole machine has spent, and this process."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    machine = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return machine, time.process_time()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(works: tuple[Callable[[], object], ...], numbers: int, budget: float) -> Speed:
    """Runs the works in turn until the budget in seconds is spent, three times at least."""
    for work in works:
        work()
    start, (machine, process) = time.perf_counter(), busy_seconds()
    rounds: list[list[float]] = []
    while len(rounds) < 3 or time.perf_counter() < start + budget:
        rounds.append([seconds(work) for work in works])
    elapsed, (machine_now, process_now) = time.perf_counter() - start, busy_seconds()
    theirs, one, all = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Speed(
        ggml=numbers / theirs / 1e6,
        one=numbers / one / 1e6,
        all=numbers / all / 1e6,
        one_ratio=statistics.median(r[0] / r[1] for r in rounds),
        all_ratio=statistics.median(r[0] / r[2] for r in rounds),
        others=max(0.0, machine_now - machine - (process_now - process)) / elapsed,
    )


def measure_quantize(x: Array, type: pg.QuantType, imatrix: Array | None, budget: float) -> Speed:
    out = np.empty((len(x), type.row_bytes(COLUMNS)), np.uint8)
    weights = None if imatrix is None else imatrix.ctypes.data

    def theirs() -> None:
        ggml().ggml_quantize_chunk(
            type.id, x.ctypes.data, out.ctypes.data, 0, len(x), COLUMNS, weights
        )

    def ours(threads: int | None) -> Callable[[], object]:
        return lambda: pg.quantize(x, type, imatrix=imatrix, threads=threads, out=out)

    return paired((theirs, ours(1), ours(None)), x.size, budget)


def measure_dequantize(data: Array, type: pg.QuantType, budget: float) -> Speed:
    out = np.empty((len(data), COLUMNS), np.float32)
    traits = ggml().ggml_get_type_traits(type.id).contents
    # A wrong layout of the structure would show here.
    assert (traits.block_size, traits.block_bytes) == (type.block_size, type.block_bytes)

    def theirs() -> None:
        if type == "F32":
            ctypes.memmove(out.ctypes.data, data.ctypes.data, data.nbytes)
        else:
            traits.to_float(data.ctypes.data, out.ctypes.data, out.size)

    def ours(threads: int | None) -> Callable[[], object]:
        return lambda: pg.dequantize(data, type, threads=threads, out=out)

    return paired((theirs, ours(1), ours(None)), out.size, budget)


def compare(type: pg.QuantType, size: int, budget: float, *, weighted: bool) -> None:
    # The slowest types do a few million numbers a second: fewer rows, but enough for all threads.
    size = size // 4 if type.startswith("IQ") else size
    x = np.random.default_rng(0).normal(0, 0.02, (max(1, size // COLUMNS), COLUMNS))
    x = x.astype(np.float32)
    imatrix = None
    if weighted or type.requires_imatrix:
        imatrix = np.random.default_rng(1).uniform(0.5, 2, COLUMNS).astype(np.float32)
    quantizing = measure_quantize(x, type, imatrix, budget)
    data = pg.quantize(x, type, imatrix=imatrix).data
    decoding = measure_dequantize(data, type, budget)
    mark = "" if imatrix is None else "+"
    print(f"{type + mark:9} {quantizing}   | {decoding}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=[str(type) for type in pg.quant_types()])
    parser.add_argument("--size", type=int, default=1 << 21, help="numbers (IQ types: a quarter)")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds for each comparison")
    parser.add_argument("--imatrix", action="store_true", help="with importances, all types")
    arguments = parser.parse_args()
    print(describe())
    version, commit = ggml().ggml_version().decode(), ggml().ggml_commit().decode()
    print(f"ggml {version} of llama.cpp {commit}")
    print(
        f"M elements/s: ggml on 1 thread, ours on 1 and on {len(os.sched_getaffinity(0))};", end=""
    )
    print(" ratios to ggml. + is with importances.")
    heads = ("ggml", "ours 1", "all", "1", "all", "others")
    half = "{:>8} {:>8} {:>8} {:>7} {:>7} {:>6}".format(*heads)
    print(f"{'type':9} {half}   | {half}   (quantize | dequantize)")
    for name in arguments.types:
        type = pg.QuantType(name)
        compare(type, arguments.size, arguments.budget, weighted=arguments.imatrix)


if __name__ == "__main__":
    main()
