"""Speed of array quantization for every type, beside ggml's own functions, gguf-py and memcpy.

ggml is `ggml_quantize_chunk` and the type's `to_float`, called by ctypes in the library that the
package was built with, on one thread. Runs are paired and interleaved; a ratio is the median over
the pairs of ggml's seconds over ours, so that a machine that others use too disturbs both alike.
Every result is compared with ggml's, byte for byte, in every round. Rows are N(0, 0.02), float32,
4 MiB of them; "gain" is of all threads over one, on 128 MiB (slow IQ types: 4 MiB).

    python benchmarks/bench_arrays.py [--types Q4_K IQ2_XS] [--kernels avx2] [--budget 1.0]
        [--size 1048576] [--stock build/stock/build/bin/libggml-base.so] [--write docs/arrays.md]

--stock tells whether the ggml that is compared with is as fast as one of a stock build.

--write puts the tables into a page with marker lines, and the chart beside it (.png; matplotlib).
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe
from page import write_between
from phiggml import _core
from phiggml.quant_input import aligned

# ggml's functions are called as the tests call them.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from ggml_functions import ggml, open_ggml

COLUMNS = 4096
MORE = 32  # times as many rows where threads are compared (slow types: 4)
SLOW = ("IQ1", "IQ2", "IQ3")
COLOURS = {"quantize": "#4477aa", "with imatrix": "#aa3377", "dequantize": "#ddaa33"}
Array = npt.NDArray[Any]
Work = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """M elements/s on one thread of ggml and of ours, of ours on all, of gguf-py; and ratios."""

    ggml: float
    ours: float
    ratio: float
    all: float
    threads: float
    gguf: float | None

    def __str__(self) -> str:
        gguf_py = "-" if self.gguf is None else figure(self.gguf)
        cells = (figure(self.ggml), figure(self.ours), f"{self.ratio:.2f}", figure(self.all))
        return " | ".join((*cells, f"{self.threads:.2f}", gguf_py))


@dataclass(frozen=True)
class Row:
    """What was measured of one type: `work` is quantize, quantize with imatrix, or dequantize."""

    type: str
    work: str
    speed: Speed

    def __str__(self) -> str:
        return f"| {self.type} | {self.work} | {self.speed} |"


def figure(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(first: Work, second: Work, check: Callable[[], None], *, budget: float) -> Array:
    """Seconds of both, taken in turn: float64[rounds, 2]."""
    first()
    second()
    start, rounds = time.perf_counter(), []
    while len(rounds) < 5 or time.perf_counter() < start + budget:
        rounds.append((seconds(first), seconds(second)))
        check()
    return np.array(rounds)


def gain(one: Work, all: Work, budget: float) -> float:
    """How many times as fast all threads are as one."""
    return float(np.median(np.divide(*paired(one, all, lambda: None, budget=budget).T)))


def speed_of(runs: Array, *, numbers: int, threads: float, gguf_py: Work | None) -> Speed:
    theirs, ours = np.median(runs, axis=0)
    return Speed(
        ggml=numbers / theirs / 1e6,
        ours=numbers / ours / 1e6,
        ratio=float(np.median(runs[:, 0] / runs[:, 1])),
        all=numbers / ours * threads / 1e6,
        threads=threads,
        gguf=None if gguf_py is None else numbers / seconds(gguf_py) / 1e6,
    )


def gguf_work(function: Any, data: Array, type: pg.QuantType) -> Work | None:
    """The gguf package's function, or None where it has none; an older one lacks some types."""

    def work(rows: Array = data) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(rows, gguf.GGMLQuantizationType(type.id))

    try:
        work(data[:1])
    except (NotImplementedError, ValueError, KeyError):
        return None
    return work


def times_as_many(type: str) -> int:
    """Rows for a call that is long beside the time in which a thread wakes up."""
    return MORE // 8 if type.startswith(SLOW) else MORE


def measure_quantize(
    x: Array, type: pg.QuantType, imatrix: Array | None, *, budget: float
) -> Speed:
    truth, found = (aligned((len(x), type.row_bytes(COLUMNS)), np.dtype(np.uint8)) for _ in "12")
    weights = None if imatrix is None else imatrix.ctypes.data
    many = np.tile(x, (times_as_many(type), 1))
    out = aligned((len(many), type.row_bytes(COLUMNS)), np.dtype(np.uint8))

    def theirs() -> None:
        ggml().ggml_quantize_chunk(
            type.id, x.ctypes.data, truth.ctypes.data, 0, len(x), COLUMNS, weights
        )

    def ours() -> None:
        pg.quantize(x, type, imatrix=imatrix, threads=1, out=found)

    def more(threads: int | None) -> Work:
        return lambda: pg.quantize(many, type, imatrix=imatrix, threads=threads, out=out)

    def check() -> None:
        assert np.array_equal(found, truth), f"{type}: the bytes are not ggml's"

    runs = paired(theirs, ours, check, budget=budget)
    threads = gain(more(1), more(None), budget)
    assert np.array_equal(out, np.tile(truth, (times_as_many(type), 1)))
    gguf_py = gguf_work(gguf.quants.quantize, x, type) if imatrix is None else None
    return speed_of(runs, numbers=x.size, threads=threads, gguf_py=gguf_py)


def measure_dequantize(data: Array, type: pg.QuantType, *, budget: float) -> Speed:
    shape = (len(data), COLUMNS)
    truth, found = (aligned(shape, np.dtype(np.float32)) for _ in "12")
    many = np.tile(data, (times_as_many(type), 1))
    out = aligned((len(many), COLUMNS), np.dtype(np.float32))
    traits = ggml().ggml_get_type_traits(type.id).contents
    # A wrong layout of the structure would show here.
    assert (traits.block_size, traits.block_bytes) == (type.block_size, type.block_bytes)

    def theirs() -> None:
        traits.to_float(data.ctypes.data, truth.ctypes.data, truth.size)

    def ours() -> None:
        pg.dequantize(data, type, threads=1, out=found)

    def more(threads: int | None) -> Work:
        return lambda: pg.dequantize(many, type, threads=threads, out=out)

    def check() -> None:
        assert np.array_equal(found, truth), f"{type}: the numbers are not ggml's"

    runs = paired(theirs, ours, check, budget=budget)
    threads = gain(more(1), more(None), budget)
    gguf_py = gguf_work(gguf.quants.dequantize, data, type)
    return speed_of(runs, numbers=truth.size, threads=threads, gguf_py=gguf_py)


def measure(type: pg.QuantType, size: int, budget: float) -> list[Row]:
    # The slowest do a few million numbers a second.
    rows_of_x = max(32, (size // 4 if type.startswith("IQ") else size) // COLUMNS)
    random = np.random.default_rng(0)
    x = random.normal(0, 0.02, (rows_of_x, COLUMNS)).astype(np.float32)
    imatrix = np.square(random.normal(0, 1, COLUMNS)).astype(np.float32)
    rows = []
    if not type.requires_imatrix:
        rows.append(Row(type, "quantize", measure_quantize(x, type, None, budget=budget)))
    rows.append(Row(type, "with imatrix", measure_quantize(x, type, imatrix, budget=budget)))
    data = pg.quantize(x, type, imatrix=imatrix).data
    rows.append(Row(type, "dequantize", measure_dequantize(data, type, budget=budget)))
    return rows


def memcpy_speed() -> float:
    """GB/s, read plus write, of arrays that no cache holds."""
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)
    times = [seconds(lambda: np.copyto(target, source)) for _ in range(9)]
    return 2 * source.nbytes / statistics.median(times) / 1e9


def beside_stock(path: Path, types: list[str]) -> str:
    """How fast ggml of this build quantizes, beside ggml of a stock build."""
    stock, rows = open_ggml(path), 64
    random = np.random.default_rng(1)
    x = random.normal(0, 0.02, (rows, COLUMNS)).astype(np.float32)
    out, weights = np.empty_like(x), np.ones(COLUMNS, np.float32)
    ratios = []
    for name in types:
        type = pg.QuantType(name)
        n_rows = rows // 8 if name.startswith("IQ") else rows
        imatrix = weights.ctypes.data if type.requires_imatrix else None
        arguments = (type.id, x.ctypes.data, out.ctypes.data, 0, n_rows, COLUMNS, imatrix)

        def work(library: Any, arguments: tuple[Any, ...] = arguments) -> Work:
            return lambda: library.ggml_quantize_chunk(*arguments)

        times = paired(work(stock), work(ggml()), lambda: None, budget=0.2)
        ratios.append(float(np.median(times[:, 0] / times[:, 1])))
    return (
        f"ggml of this build is {min(ratios):.2f} to {max(ratios):.2f} times as fast as ggml of a "
        f"stock build (quantizing; {statistics.median(ratios):.2f} in the median of types).\n"
    )


def head(stock: str) -> str:
    cores = len(os.sched_getaffinity(0))
    machine = describe().replace("\n", ".\n")
    return (
        f"{datetime.date.today():%Y-%m-%d}, kernels for {_core.quant.kernel_set()}.\n{machine}.\n"
        f"{stock}memcpy: {memcpy_speed():.1f} GB/s, read plus write. M elements/s:\n\n"
        f"| type | work | ggml | phiggml | ratio | {cores} threads | gain | gguf-py |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )


def chart(rows: list[Row], path: Path) -> None:
    """Bars of the ratios, up or down from ggml's own speed, grouped by type."""
    from matplotlib.figure import Figure

    types = list(dict.fromkeys(row.type for row in rows))
    figure = Figure(figsize=(max(5, 2 + 0.3 * len(types)), 4.8), layout="constrained")
    axes = figure.subplots()
    for place in range(0, len(types), 2):
        axes.axvspan(place - 0.5, place + 0.5, color="#f0f0f0", zorder=0)
    for i, (work, colour) in enumerate(COLOURS.items()):
        found = {row.type: row.speed.ratio for row in rows if row.work == work}
        places = [types.index(type) + (i - 1) * 0.28 for type in found]
        heights = [ratio - 1 for ratio in found.values()]
        axes.bar(places, heights, 0.26, bottom=1, label=work, color=colour, zorder=2)
    axes.axhline(1, color="black", linewidth=0.8, zorder=3)
    axes.set_yscale("log", base=2)
    orders = [math.log2(row.speed.ratio) for row in rows]
    powers = range(math.floor(min(*orders, 0)), math.ceil(max(*orders, 1)) + 1)
    ticks = [2.0**power for power in powers]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_ylim(ticks[0], ticks[-1])
    axes.minorticks_off()
    axes.set_xticks(range(len(types)), types, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(types) - 0.5)
    axes.set_ylabel("times as fast as ggml, one thread")
    axes.grid(axis="y", linewidth=0.4, zorder=1)
    figure.legend(ncols=3, frameon=False, loc="outside upper center")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    types = [str(type) for type in pg.quant_types() if type != "F32"]
    parser.add_argument("--types", nargs="+", default=types)
    parser.add_argument("--size", type=int, default=1 << 20, help="numbers (IQ types: a quarter)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each comparison")
    parser.add_argument("--kernels", choices=_core.quant.kernel_sets())
    parser.add_argument("--stock", type=Path, help="libggml-base.so of a stock build")
    parser.add_argument("--write", type=Path, help="a page with the two marker lines")
    arguments = parser.parse_args()
    if arguments.kernels:
        _core.quant.use_kernel_set(arguments.kernels)
    stock = "" if arguments.stock is None else beside_stock(arguments.stock, arguments.types)
    text = [head(stock)]
    print(text[0])
    rows = []
    for name in arguments.types:
        for row in measure(pg.QuantType(name), arguments.size, arguments.budget):
            rows.append(row)
            text.append(str(row))
            print(row, flush=True)
    if arguments.write is not None:
        write_between(arguments.write, Path(__file__).name, "\n".join(text))
        chart(rows, arguments.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
