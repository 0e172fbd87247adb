"""Strangers' names and values in one line of text, and lines in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from phiggml.gguf_value import GGUFStrings

__all__ = ["columns", "escaped", "one_line", "shown_shape", "shown_value"]

_MOST_CHARACTERS = 60
_MOST_ELEMENTS = 4


def one_line(text: str) -> str:
    """The text with backslashes and what cannot be printed escaped: no two texts become one."""
    return escaped(text.replace("\\", "\\\\"))


def escaped(text: str, *, kept: str = "") -> str:
    """The text with what cannot be printed escaped, but for the characters in `kept`."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def shown_value(value: Any, *, quoted: bool = True) -> str:
    """A metadata value in few characters of one line; an array by its length and first elements."""
    if isinstance(value, np.ndarray | GGUFStrings | list):
        first = ", ".join(shown_value(v, quoted=quoted) for v in value[:_MOST_ELEMENTS])
        # The count comes first: a narrow terminal cuts off the end.
        return f"[{first}]" if len(value) <= _MOST_ELEMENTS else f"{len(value):,}: [{first}, ...]"
    if isinstance(value, str):
        cut = value[:_MOST_CHARACTERS]
        text = repr(cut) if quoted else one_line(cut)
        return text if cut == value else f"{len(value):,} characters: {text}..."
    return f"{value:.7g}" if isinstance(value, float | np.floating) else str(value)


def shown_shape(shape: Sequence[int]) -> str:
    """Sizes of the axes."""
    return " x ".join(map(str, shape)) or "scalar"


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """A line for each row, cells below each other; columns numbered in `right` set to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
