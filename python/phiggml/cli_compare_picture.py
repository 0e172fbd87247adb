"""The error of each type against its bits, as a picture with labelled points."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.atomic_file import require_writable_name
from phiggml.cli_picture import new_figure, picture_format, write_figure
from phiggml.comparison import ComparedType, TypeComparison

__all__ = ["place_labels", "require_picture", "write_picture"]

_WIDTH, _HEIGHT = 10.0, 7.5
_FRAME = (0.08, 0.08, 0.89, 0.86)
_FONT_POINTS = 8.0
# Of a letter of the default font, relative to its size: capitals and digits, with the gaps.
_LETTER_WIDTH, _LINE_HEIGHT = 0.68, 1.2
_MARKER_POINTS = 5.0
_TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)
_FAMILIES = (("float", "#555555", "s"), ("IQ", "#aa3377", "^"), ("K", "#4477aa", "o"))
_OTHERS = ("other", "#228833", "D")

# Between a point and its name; beyond the second a line joins them.
_GAPS = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 47.0, 57.0, 68.0, 80.0)
_MOST_GAP = 8.5
_LINE_DOTS = 12
# Other points are at least this much farther from a label without a line than its own.
_MARGIN = 1.3
_MORE_ORDERS = 14

_Point = tuple[float, float]
_Box = tuple[float, float, float, float]


def require_picture(path: Path, source: str, *, overwrite: bool) -> None:
    """Checks that a picture can be written, before the work that it is to show.

    Raises:
        UnsupportedError: matplotlib is not installed.
        InputError: it writes no such format; or the picture would replace the source.
        FileExistsError: the file exists and overwrite is False.
    """
    figure = _new_figure()
    formats = figure.canvas.get_supported_filetypes()
    if picture_format(path) not in formats:
        raise pg.InputError(
            f"compare: {path}: matplotlib writes no such format. Those are: {', '.join(formats)}."
        )
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise pg.InputError(f"compare: {path}: it is the source itself. Write to another file.")
    require_writable_name(path, overwrite=overwrite)


def write_picture(found: TypeComparison, path: Path, title: str, *, overwrite: bool) -> None:
    """Draws a comparison by matplotlib; see require_picture.

    Raises:
        InputError: matplotlib cannot draw it.
        FileExistsError: the file exists and overwrite is False.
    """
    figure = _new_figure()
    write_figure(
        figure,
        lambda: _draw(figure, found.rows, title),
        path,
        operation="compare",
        overwrite=overwrite,
    )


def _new_figure() -> Any:
    return new_figure(
        _WIDTH,
        _HEIGHT,
        operation="compare",
        otherwise="Without --plot, the table alone is printed.",
    )


def _draw(figure: Any, rows: Sequence[ComparedType], title: str) -> None:
    axes = figure.add_axes(_FRAME)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    low, high = _height_limits(rows)
    bits = [row.bits_per_weight for row in rows]
    axes.set_xlim(min(bits) / 1.15, max(bits) * 1.25)
    axes.set_ylim(low, high)
    ticks = [tick for tick in _TICKS if min(bits) / 1.15 <= tick <= max(bits) * 1.25]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("nrmse")
    axes.set_title(title, parse_math=False, fontsize=10)
    heights = [min(max(row.nrmse, low), high) for row in rows]
    _draw_points(axes, rows, heights)
    _draw_labels(axes, figure.dpi, rows, heights)


def _height_limits(rows: Sequence[ComparedType]) -> tuple[float, float]:
    """Bounds for a logarithmic axis; what is exact is drawn on the lower one."""
    seen = [row.nrmse for row in rows if 0 < row.nrmse < math.inf] or [1e-3]
    return min(seen) / 4, max(seen) * 2


def _family(type: pg.QuantType) -> tuple[str, str, str]:
    float_family, iq_family, k_family = _FAMILIES
    if type.block_size == 1:
        return float_family
    if type.startswith("IQ"):
        return iq_family
    return k_family if type.endswith("_K") else _OTHERS


def _draw_points(axes: Any, rows: Sequence[ComparedType], heights: Sequence[float]) -> None:
    for family in (*_FAMILIES, _OTHERS):
        name, colour, marker = family
        points = [
            (row.bits_per_weight, y)
            for row, y in zip(rows, heights, strict=True)
            if _family(row.type) == family
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, marker, color=colour, markersize=_MARKER_POINTS, label=name, clip_on=False
            )
    axes.legend(loc="upper right", fontsize=_FONT_POINTS)


def _draw_labels(
    axes: Any, dpi: float, rows: Sequence[ComparedType], heights: Sequence[float]
) -> None:
    """Names beside their points."""
    scale = dpi / 72
    bits = [row.bits_per_weight for row in rows]
    points = axes.transData.transform(list(zip(bits, heights, strict=True))) / scale
    frame = axes.get_window_extent()
    inside = (frame.x0 / scale, frame.y0 / scale, frame.x1 / scale, frame.y1 / scale)
    texts = [str(row.type) if row.nrmse > 0 else f"{row.type} (exact)" for row in rows]
    boxes = place_labels([(float(x), float(y)) for x, y in points], texts, inside)
    for row, height, text, point, box in zip(rows, heights, texts, points, boxes, strict=True):
        colour = _family(row.type)[1]
        far = math.dist(point, _nearest((float(point[0]), float(point[1])), box)) > _MOST_GAP
        line = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            text,
            (row.bits_per_weight, height),
            xytext=((box[0] + box[2]) / 2 - point[0], (box[1] + box[3]) / 2 - point[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_FONT_POINTS,
            color=colour,
            arrowprops=line if far else None,
        )


def place_labels(points: Sequence[_Point], texts: Sequence[str], inside: _Box) -> list[_Box]:
    """Boxes for names, each near its point, that cover neither points nor other names.

    Args:
        points: in typographic points (1/72 inch), as everything here.
        texts: the name of each.
        inside: what the boxes must not leave.

    Returns:
        left, bottom, right, top of each; where nothing is free, to the right of its point.
    """
    order = list(range(len(points)))
    orders = [order, order[::-1]]
    shuffle = random.Random(0).shuffle
    for _ in range(_MORE_ORDERS):
        orders.append(orders[-1][:])
        shuffle(orders[-1])
    tries = (_placed_in_order(o, points, texts, inside=inside) for o in orders)
    return min(tries, key=lambda found: found[0])[1]


def _placed_in_order(
    order: Sequence[int], points: Sequence[_Point], texts: Sequence[str], *, inside: _Box
) -> tuple[float, list[_Box]]:
    """How bad the places are, and the boxes, where who comes first takes what is best."""
    r = _MARKER_POINTS / 2
    markers = [(x - r, y - r, x + r, y + r) for x, y in points]
    placed: dict[int, _Box] = {}
    lines: list[_Point] = []
    cost = 0.0
    for i in order:
        boxes = list(_boxes_around(points[i], _LETTER_WIDTH * _FONT_POINTS * len(texts[i])))
        taken = [*markers, *placed.values()]
        # Names, and points that the own one does not touch.
        closed = [*placed.values(), *(m for m in markers if not _overlap(m, markers[i]))]
        free = [
            (rank, box)
            for rank, box in enumerate(boxes)
            if _within(box, inside)
            and not any(_overlap(box, other) for other in taken)
            and not any(_holds(box, dot) for dot in lines)
        ]
        clear = (
            (rank, box)
            for rank, box in free
            if _is_nearest(points[i], box, points)
            and not any(_holds(other, dot) for dot in _line(points[i], box) for other in closed)
        )
        last = (2 * len(boxes), free[0][1] if free else boxes[0])
        rank, placed[i] = next(clear, last)
        cost += rank
        lines += _line(points[i], placed[i])
    return cost, [placed[i] for i in range(len(points))]


def _boxes_around(point: _Point, width: float) -> Iterator[_Box]:
    """Places for a label, the nearest first: to the right, to the left, then around the point."""
    x, y = point
    height = _LINE_HEIGHT * _FONT_POINTS
    around = sorted(
        (k * math.pi / 8 for k in range(-7, 9)), key=lambda a: (-abs(math.cos(a)), -math.cos(a), -a)
    )
    for gap, angle in itertools.product(_GAPS, around):
        right, up = math.cos(angle), math.sin(angle)
        # Where the side or corner of the box that faces the point lies, not its centre.
        left = x + right * gap + (min(max(1.5 * right, -1), 1) - 1) * width / 2
        bottom = y + up * gap + (min(max(1.5 * up, -1), 1) - 1) * height / 2
        yield left, bottom, left + width, bottom + height


def _is_nearest(point: _Point, box: _Box, points: Sequence[_Point]) -> bool:
    """Whether a label without a line to its point is clearly nearer to it than to other ones."""
    own = math.dist(point, _nearest(point, box))
    return own > _MOST_GAP or all(
        math.dist(p, _nearest(p, box)) >= _MARGIN * own for p in points if p != point
    )


def _line(point: _Point, box: _Box) -> list[_Point]:
    """Some dots of the line that joins a label with its point; none where they touch."""
    end = _nearest(point, box)
    if math.dist(point, end) <= _MOST_GAP:
        return []
    shares = [k / _LINE_DOTS for k in range(1, _LINE_DOTS)]
    return [
        (point[0] + s * (end[0] - point[0]), point[1] + s * (end[1] - point[1])) for s in shares
    ]


def _nearest(point: _Point, box: _Box) -> _Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _holds(box: _Box, point: _Point) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _within(box: _Box, frame: _Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
