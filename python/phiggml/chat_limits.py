"""What a chat template may spend: seconds, and the characters and values that it makes.

Templates are strangers' programs. Every line of one runs under a trace that knows the deadline;
what could make much in a single step is weighed before that step.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["LimitError", "Limits", "check_call", "check_operation", "check_weight", "spend"]

MOST_CHARACTERS = 4 << 20
"""Of the text that a template renders, and of any text that it makes on the way."""
MOST_SECONDS = 2.0
_MOST_VALUES = 1 << 18
_ALLOWANCE = 128 << 20  # characters and list elements of one rendering, all steps together
_MOST_BITS = 4096

_state = threading.local()


class LimitError(BaseException):
    """A template went beyond a limit; says which. Jinja2, which catches Exception, lets it pass."""


class Limits(AbstractContextManager["Limits"]):
    """While it is entered, this thread's template has 2 seconds and an allowance of characters."""

    def __enter__(self) -> Limits:
        _state.left = _ALLOWANCE
        self._deadline = time.monotonic() + MOST_SECONDS
        self._previous = sys.gettrace()
        sys.settrace(self._watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.settrace(self._previous)

    def _watch(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        if frame.f_code is _EXIT_CODE:
            return None
        if time.monotonic() > self._deadline:
            raise LimitError(f"takes more than {MOST_SECONDS:g} seconds")
        # The scales below end by themselves, and are ten times as fast unwatched.
        return None if frame.f_code is _WEIGH_CODE else self._watch


def spend(amount: int) -> None:
    """Takes characters or elements, which are about to be made, from the allowance."""
    _state.left = getattr(_state, "left", _ALLOWANCE) - amount
    if _state.left < 0 or amount > MOST_CHARACTERS:
        raise LimitError("makes too long a text")


def check_weight(value: Any) -> int:
    """Characters and values in nested lists and mappings, what is there twice counted twice."""
    weight = _weigh(value)
    if weight < 0:
        raise LimitError("makes too large a structure")
    return weight


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses `left operator right` where the result would be too large."""
    if operator == "%":
        if isinstance(left, (str, bytes)):
            raise LimitError("formats with %, which is not allowed")
    elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
        _check_number(operator, left, right)
    elif operator == "+":
        spend(_length(left) + _length(right))
    elif operator == "*":
        spend(_length(left) * _count(right) + _length(right) * _count(left))


def check_call(called: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuses a call of a text's or number's method whose result would be too large."""
    method = getattr(called, "__wrapped__", called)
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(owner, int) and name == "to_bytes":
        raise LimitError("calls to_bytes, which is not allowed")
    if not isinstance(owner, (str, bytes)):
        return
    values = [*arguments, *named.values()]
    if name == "translate":
        raise LimitError("calls translate, which is not allowed")
    if name in ("format", "format_map"):
        _check_format(str(owner), values)
    elif name in ("center", "ljust", "rjust", "zfill"):
        spend(max([len(owner), *map(_count, values)]))
    elif name == "expandtabs":
        spend(len(owner) + len(owner) * max([8, *map(_count, values)]))
    elif name == "replace":
        spend(_replaced_length(owner, values))
    elif name == "join":
        # An iterator has been turned into a list by the caller; its texts are weighed with it.
        spend(check_weight(values) + len(owner) * sum(_length(value) for value in values))
    else:
        spend(len(owner))


def _check_number(operator: str, left: float, right: float) -> None:
    if not isinstance(left, int) or not isinstance(right, int):
        return
    bits = left.bit_length() * max(right, 0) if operator == "**" else 0
    if operator == "*":
        bits = left.bit_length() + right.bit_length()
    if bits > _MOST_BITS:
        raise LimitError("makes too large a number")


def _check_format(pattern: str, values: Sequence[Any]) -> None:
    fields = pattern.replace("{{", "").replace("}}", "")
    if re.search(r"\{[^{}]*\{", fields) or re.search(r"\{[^{}]*\d{4}[^{}]*\}", fields):
        raise LimitError("formats with a width, which is not allowed")
    spend(len(pattern) + fields.count("{") * (1000 + check_weight(list(values))))


def _replaced_length(owner: str | bytes, values: Sequence[Any]) -> int:
    old, new = values[0], values[1]
    if not isinstance(old, type(owner)) or not isinstance(new, type(owner)):
        return len(owner)  # str.replace itself refuses it
    return len(owner) + owner.count(old) * len(new)  # type: ignore[arg-type]


def _weigh(value: Any) -> int:
    """As `check_weight`; -1 when it is too much."""
    n_values = n_characters = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        n_values += 1
        if isinstance(item, (str, bytes)):
            n_characters += len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        if len(waiting) + n_values > _MOST_VALUES or n_characters > _ALLOWANCE:
            return -1
    return n_values + n_characters


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


_WEIGH_CODE = _weigh.__code__
_EXIT_CODE = Limits.__exit__.__code__
