"""Typed reading of JSON objects that gathers faults instead of stopping at the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from phiggml.conversion.faults import Faults

__all__ = ["INT32_MAX", "LEAST", "Fields", "is_number", "is_text", "shortest", "shown"]

INT32_MAX = 2**31 - 1
_SHOWN = 60
# No float32 of interest is smaller; what counts as greater than 0.
LEAST = 1e-37


def is_text(value: Any) -> TypeGuard[str]:
    """Whether `value` is a string that UTF-8 can hold (JSON can smuggle in lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """The fields of one JSON object. A field that is absent or null takes its default.

    A getter without a default adds a fault when the field is absent, one with a wrong value always
    does; both then return a stand-in, so that reading goes on and finds the other faults.
    """

    def __init__(
        self, values: Mapping[str, Any], path: Path, faults: Faults, *, prefix: str = ""
    ) -> None:
        self._values = values
        self.path = path
        self.faults = faults
        self._prefix = prefix

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def fault(self, name: str, rule: str) -> None:
        self.faults.add(self.path, f"{self._prefix}{name} = {shown(self.raw(name))}: {rule}")

    def _missing(self, name: str) -> None:
        self.faults.add(self.path, f"{self._prefix}{name} is missing.")

    def integer(
        self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = INT32_MAX
    ) -> int:
        value = self._values.get(name)
        if value is None:
            if default is None:
                self._missing(name)
            return minimum if default is None else default
        if type(value) is not int or not minimum <= value <= maximum:
            self.fault(name, f"must be a whole number from {minimum} to {maximum}.")
            return minimum
        return value

    def number(
        self,
        name: str,
        default: float | None = None,
        *,
        minimum: float = LEAST,
        maximum: float = 3.4e38,
    ) -> float:
        """A number that a float32 can hold, greater than 0 unless the minimum is 0."""
        value = self._values.get(name)
        if value is None:
            if default is None:
                self._missing(name)
            return 1.0 if default is None else default
        if not is_number(value) or not minimum <= value <= maximum:
            least = "above 0" if minimum == LEAST else f"from {minimum:g}"
            self.fault(name, f"must be a number {least} and at most {maximum:g}.")
            return 1.0
        return float(value)

    def numbers(self, name: str, length: int | None) -> tuple[float, ...]:
        """A list of `length` numbers above 0; None takes any length."""
        value = self._values.get(name)
        if value is None:
            self._missing(name)
        elif not isinstance(value, list):
            self.fault(name, "must be a list of numbers.")
        elif length is not None and len(value) != length:
            self.fault(
                name, f"holds {len(value)} numbers; {length} are needed, half a rotary size."
            )
        elif not all(is_number(item) and LEAST <= item <= 3.4e38 for item in value):
            self.fault(name, "must hold finite numbers above 0 only.")
        else:
            return tuple(float(item) for item in value)
        return (1.0,)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(name, "must be true or false.")
            return default
        return value

    def text(self, name: str, default: str) -> str:
        value = self._values.get(name)
        if value is None:
            return default
        if not is_text(value):
            self.fault(name, "must be a string.")
            return default
        return value

    def inner(self, name: str) -> Fields:
        """The object in a field; an empty one where it is absent or null."""
        value = self._values.get(name)
        if value is None:
            value = {}
        elif not isinstance(value, dict):
            self.fault(name, "must be an object or null.")
            value = {}
        return Fields(value, self.path, self.faults, prefix=f"{self._prefix}{name}.")


def shown(value: Any) -> str:
    """A value of a file as an error message shows it: repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def shortest(value: float) -> float:
    """The number of fewest decimals that a FLOAT32 holds as `value`: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is a finite number (true and false are none)."""
    if type(value) is int:
        return abs(value) < 2**127
    return type(value) is float and math.isfinite(value)
