"""Strangers' names and values in one line of text, and lines in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from phiggml.gguf_value import GGUFStrings

__all__ = ["columns", "one_line", "shown_shape", "shown_value"]

_MOST_CHARACTERS = 60


def one_line(text: str) -> str:
    """The text with backslashes and what cannot be printed escaped: no two texts become one."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text
    )


def shown_value(value: Any) -> str:
    """A metadata value in few characters; an array by its length and first elements."""
    if isinstance(value, np.ndarray | GGUFStrings):
        first = ", ".join(shown_value(element) for element in value[:3])
        return f"[{first}{', ...' if len(value) > 3 else ''}]"
    if isinstance(value, str):
        text = value if len(value) <= _MOST_CHARACTERS else value[:_MOST_CHARACTERS]
        rest = "" if text is value else f"... ({len(value):,} characters)"
        return f"{text!r}{rest}"
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
