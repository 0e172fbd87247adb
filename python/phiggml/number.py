"""Numbers that users pass: Python's or numpy's, and no bool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["integer", "real"]


def integer(value: Any, least: int, most: int | None = None) -> int | None:
    """`value` as an int, where it is a whole number from `least` to `most`; else None."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return None
    number = int(value)
    return number if least <= number and (most is None or number <= most) else None


def real(value: Any) -> float | None:
    """`value` as a float, where it is a number, NaN and infinities among them; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:  # of an int
        return math.inf if value > 0 else -math.inf
