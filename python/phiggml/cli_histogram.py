"""A tensor's numbers in figures, as bars on a terminal, and as a picture."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.atomic_file import require_writable_name
from phiggml.cli_picture import new_figure, write_figure
from phiggml.gguf_piece import blocks_in_pieces, numbers

__all__ = ["Histogram", "TensorFigures", "bars", "histogram", "tensor_figures", "write_picture"]

_DEVIATIONS = 4.0
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEAST_WIDTH = 8
# Bins around a single value: far enough apart for float64 and for float32.
_HALF_SHARE = 1 / 16


@dataclass(frozen=True)
class TensorFigures:
    """What a tensor's numbers are like.

    Attributes:
        count: all of them.
        n_nan: those that are NaN.
        n_infinite: those that are infinite.
        min, max, mean, std: of those that are finite, in float64; None if none is.
    """

    count: int
    n_nan: int
    n_infinite: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Histogram:
    """How a tensor's numbers spread.

    Attributes:
        edges: float64[n + 1], of bins of equal width.
        counts: int64[n]; a number on an edge is in the bin above, on the last in the last.
        n_below: finite numbers below the first edge.
        n_above: finite numbers above the last edge.
        n_nan: those that are NaN.
        n_infinite: those that are infinite.
    """

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    n_below: int
    n_above: int
    n_nan: int
    n_infinite: int

    def outside(self) -> str:
        """What lies outside the bins, in words."""
        found = [
            (self.n_below, f"below {self.edges[0]:.4g}"),
            (self.n_above, f"above {self.edges[-1]:.4g}"),
            (self.n_nan, "NaN"),
            (self.n_infinite, "infinite"),
        ]
        told = [f"{count:,} {what}" for count, what in found if count > 0]
        return f"outside: {', '.join(told) or 'nothing'}"


def tensor_figures(tensor: pg.GGUFTensor, threads: int) -> TensorFigures:
    """Counts, bounds, mean and standard deviation, in one pass over pieces of the tensor."""
    n_nan = n_finite = 0
    low, high, mean, squares = math.inf, -math.inf, 0.0, 0.0
    for values, finite in _pieces(tensor, threads):
        n_nan += int(np.isnan(values).sum())
        if finite.size == 0:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        with np.errstate(over="ignore", invalid="ignore"):
            own_mean = float(finite.mean())
            own_squares = float(np.square(finite - own_mean).sum())
        # Chan, Golub and LeVeque's way of joining two samples loses no digits to large means.
        step, n_before, n_finite = own_mean - mean, n_finite, n_finite + finite.size
        mean += step * finite.size / n_finite
        squares += own_squares + step * step * n_before * finite.size / n_finite
    count = math.prod(tensor.shape)
    n_infinite = count - n_nan - n_finite
    if n_finite == 0:
        return TensorFigures(count, n_nan, n_infinite, None, None, None, None)
    std = math.sqrt(squares / n_finite)
    return TensorFigures(count, n_nan, n_infinite, low, high, mean, std)


def histogram(
    tensor: pg.GGUFTensor, figures: TensorFigures, n_bins: int, *, threads: int
) -> Histogram:
    """Counts a tensor's numbers in bins around their mean, in one pass over pieces of it.

    Args:
        tensor: whose numbers.
        figures: its own.
        n_bins: how many, over at most four standard deviations to either side.
        threads: how many to use.
    """
    edges = _edges(figures, n_bins)
    counts = np.zeros(n_bins + 2, np.int64)
    for _, finite in _pieces(tensor, threads):
        place = np.searchsorted(edges, finite, side="right")
        place[finite == edges[-1]] = n_bins
        counts += np.bincount(place, minlength=n_bins + 2)
    return Histogram(
        edges=edges,
        counts=counts[1:-1],
        n_below=int(counts[0]),
        n_above=int(counts[-1]),
        n_nan=figures.n_nan,
        n_infinite=figures.n_infinite,
    )


def _pieces(
    tensor: pg.GGUFTensor, threads: int
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """The numbers, and those of them that are finite."""
    for _, blocks in blocks_in_pieces(tensor):
        with np.errstate(invalid="ignore"):  # of NaN that signal
            values = numbers(blocks, tensor.type, threads).reshape(-1).astype(np.float64)
        finite = np.isfinite(values)
        yield values, values if finite.all() else values[finite]


def _edges(figures: TensorFigures, n_bins: int) -> npt.NDArray[np.float64]:
    low, high, mean, std = figures.min, figures.max, figures.mean, figures.std
    if low is None or high is None or mean is None or std is None:
        return np.linspace(-1.0, 1.0, n_bins + 1)
    if math.isfinite(mean) and math.isfinite(std):
        low, high = max(low, mean - _DEVIATIONS * std), min(high, mean + _DEVIATIONS * std)
    if low >= high:
        half = max(0.5, abs(low) * _HALF_SHARE)
        low, high = max(low - half, -sys.float_info.max), min(low + half, sys.float_info.max)
    share = np.linspace(0.0, 1.0, n_bins + 1)
    edges: npt.NDArray[np.float64] = low * (1.0 - share) + high * share
    return edges


def bars(found: Histogram, *, log: bool) -> list[str]:
    """A line for each bin: its lower edge, a bar and a count; then the upper edge of the last.

    Args:
        found: the counts.
        log: bars as long as the logarithms of 1 + count.

    Returns:
        Lines that fit the terminal, of 80 columns if there is none.
    """
    edges = [f"{edge:.4g}" for edge in found.edges]
    counts = [f"{count:,}" for count in found.counts]
    edge_width, count_width = max(map(len, edges)), max(map(len, counts))
    columns = shutil.get_terminal_size((80, 24)).columns
    width = max(columns - edge_width - count_width - 4, _LEAST_WIDTH)
    heights = np.log1p(found.counts) if log else found.counts.astype(np.float64)
    scale = width / max(float(heights.max()), 1e-300)
    drawn = [_bar(height * scale, plain=not _takes_blocks()) for height in heights.tolist()]
    lines = [
        f"{edge:>{edge_width}}  {bar:<{width}}  {count:>{count_width}}"
        for edge, bar, count in zip(edges[:-1], drawn, counts, strict=True)
    ]
    return [*lines, f"{edges[-1]:>{edge_width}}"]


def _takes_blocks() -> bool:
    try:
        _EIGHTHS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bar(length: float, *, plain: bool) -> str:
    """As many characters; what is not nothing is seen."""
    eighths = math.ceil(length) * 8 if plain else max(round(length * 8), math.ceil(length > 0))
    full, rest = divmod(eighths, 8)
    if plain:
        return "#" * full
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def write_picture(found: Histogram, path: Path, title: str, *, log: bool, overwrite: bool) -> None:
    """Draws a histogram by matplotlib; the format is that of the name's suffix.

    Raises:
        UnsupportedError: matplotlib is not installed.
        InputError: it writes no such format.
        FileExistsError: the file exists and overwrite is False.
    """
    require_writable_name(path, overwrite=overwrite)
    figure = new_figure(
        8,
        4.5,
        operation="inspect",
        otherwise="Without -o, bars are drawn as text.",
        layout="constrained",
    )
    write_figure(
        figure,
        lambda: _draw(figure, found, title, log=log),
        path,
        operation="inspect",
        overwrite=overwrite,
    )


def _draw(figure: Any, found: Histogram, title: str, *, log: bool) -> None:
    axes = figure.add_subplot()
    axes.stairs(found.counts, found.edges, fill=True, color="#4477aa")
    axes.set_yscale("symlog" if log else "linear")
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"value ({found.outside()})")
    axes.set_ylabel(f"numbers per bin of {found.edges[1] - found.edges[0]:.3g}")
    axes.set_title(title, parse_math=False)
