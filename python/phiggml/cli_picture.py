"""Pictures that matplotlib draws, which need not be installed."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.atomic_file import AtomicFile

__all__ = ["new_figure", "picture_format", "write_figure"]


def new_figure(
    width: float, height: float, *, operation: str, otherwise: str, layout: str | None = None
) -> Any:
    """An empty matplotlib figure.

    Args:
        width, height: in inches.
        operation: for whom.
        otherwise: a sentence on what can be had without matplotlib.
        layout: matplotlib's layout engine; None for places that are set by hand.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        figure_class = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise pg.UnsupportedError(
            f"{operation}: pictures are drawn by matplotlib, which is not installed. "
            f"Install it: pip install matplotlib. {otherwise}"
        ) from None
    return figure_class(figsize=(width, height), layout=layout)


def picture_format(path: Path) -> str:
    """The format that a file's suffix stands for; PNG without one."""
    return path.suffix[1:] or "png"


def write_figure(
    figure: Any, draw: Callable[[], None], path: Path, *, operation: str, overwrite: bool
) -> None:
    """Fills a figure and writes it; the format is that of the name's suffix.

    Raises:
        InputError: matplotlib writes no such format, or cannot draw it.
        FileExistsError: the file exists and overwrite is False.
    """
    picture = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Of letters in a stranger's name that no font has, and of numbers near infinity.
            warnings.simplefilter("ignore")
            draw()
            figure.savefig(picture, format=picture_format(path), dpi=150)
    except (ValueError, OverflowError) as error:
        raise pg.InputError(f"{operation}: {path}: {error}.") from error
    file = AtomicFile(path.parent)
    try:
        file.write(picture.getvalue())
        file.publish(path, overwrite=overwrite)
    finally:
        file.discard()
