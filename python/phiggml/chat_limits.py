"""What a chat template may spend: seconds, and the characters and values that it makes.

Templates are strangers' programs. Every line of one runs under a trace that knows the deadline;
what could make much in a single step is weighed before that step.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType, MappingProxyType, TracebackType
from typing import Any

__all__ = [
    "STRUCTURES",
    "LimitError",
    "Limits",
    "check_call",
    "check_depth",
    "check_made",
    "check_operation",
    "check_time",
    "check_weight",
    "spend",
]

STRUCTURES: tuple[type[Any], ...] = (
    list,
    tuple,
    set,
    frozenset,
    dict,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    MappingProxyType,
)
"""What holds values that are written, hashed and compared with it."""

MOST_CHARACTERS = 4 << 20
"""Of the text that a template renders, and of any text that it makes on the way."""
MOST_SECONDS = 2.0
_MOST_VALUES = 1 << 18
_ALLOWANCE = 128 << 20  # characters and list elements of one rendering, all steps together
_MOST_BITS = 4096
# An element of a list takes 8 bytes and is most often an object of some 50.
_ELEMENT_COST = 16
# Characters of a name that stands for one that cannot be encoded.
_MOST_REPLACEMENT = 100

_state = threading.local()


class LimitError(BaseException):
    """A template went beyond a limit; says which. Jinja2, which catches Exception, lets it pass."""


class Limits(AbstractContextManager["Limits"]):
    """While it is entered, this thread's template has 2 seconds and an allowance of characters."""

    def __enter__(self) -> Limits:
        _state.left = _ALLOWANCE
        _state.deadline = self._deadline = time.monotonic() + MOST_SECONDS
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
        _check_deadline(self._deadline)
        # The scales below end by themselves, and are ten times as fast unwatched.
        return None if frame.f_globals is _OWN_NAMES else self._watch


def check_time() -> None:
    """Refuses to go on beyond the deadline, which a lost trace would not see.

    Python drops a trace that raises, and what is raised while an iterator is freed is dropped too.
    """
    _check_deadline(getattr(_state, "deadline", math.inf))


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise LimitError(f"takes more than {MOST_SECONDS:g} seconds")


def spend(amount: int) -> None:
    """Takes characters or elements, which are about to be made, from the allowance."""
    check_time()
    _state.left = getattr(_state, "left", _ALLOWANCE) - amount
    if _state.left < 0 or amount > MOST_CHARACTERS:
        raise LimitError("makes too long a text")


def check_weight(value: Any) -> int:
    """Characters and values in nested lists and mappings, what is there twice counted twice."""
    weight = _weigh(value)
    if weight < 0:
        raise LimitError("makes too large a structure")
    return weight


def check_made(value: Any, *, is_part: bool = False) -> Any:
    """The value, which a step has made: so every value there is can be compared or written.

    Args:
        value: what was made.
        is_part: all of it was in a list that has been weighed.
    """
    check_time()
    if isinstance(value, (str, bytes)):
        spend(len(value))
    elif isinstance(value, STRUCTURES):
        spend(_ELEMENT_COST * len(value))
        if not is_part:
            check_weight(value)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise LimitError("makes too large a number")
    return value


def check_depth(value: Any) -> int:
    """How deep lists and mappings are nested in a value that has been weighed."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, STRUCTURES)]:
        depth += 1
        inner: list[Any] = []
        for item in level:
            inner.extend(item.values() if isinstance(item, dict) else item)
        level = inner
    return depth


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses `left operator right` where the result would be too large."""
    check_time()
    if operator == "%" and isinstance(left, (str, bytes)):
        raise LimitError("formats with %, which is not allowed")
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        _check_number(operator, left, right)
    elif operator == "+":
        _check_repeated(left, 1)
        _check_repeated(right, 1)
    elif operator == "*":
        _check_repeated(left, _count(right))
        _check_repeated(right, _count(left))


def _check_repeated(value: Any, times: int) -> None:
    if isinstance(value, (str, bytes)):
        spend(len(value) * times)
    elif isinstance(value, (list, tuple)):
        spend(_ELEMENT_COST * len(value) * times)
        if check_weight(value) * times > MOST_CHARACTERS:
            raise LimitError("makes too large a structure")


def check_call(called: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuses a call of a text's or number's method whose result would be too large."""
    method = getattr(called, "__wrapped__", called)
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(owner, int) and name == "to_bytes":
        raise LimitError("calls to_bytes, which is not allowed")
    if name == "fromkeys":
        raise LimitError("calls fromkeys, which is not allowed")
    check_weight(arguments)
    check_weight(named)
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
    elif name == "encode" and len(values) > 1:
        spend(len(owner) * _MOST_REPLACEMENT)
    else:
        spend(len(owner))


def _check_number(operator: str, left: float, right: float) -> None:
    if not isinstance(left, int) or not isinstance(right, int):
        return
    bits = max(left.bit_length(), right.bit_length())
    if operator == "**":
        bits = left.bit_length() * max(right, 0)
    elif operator == "*":
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
    check_time()
    n_values = n_characters = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        n_values += 1
        if isinstance(item, (str, bytes)):
            n_characters += len(item)
        elif isinstance(item, STRUCTURES):
            waiting.extend(item)
            if isinstance(item, (dict, MappingProxyType)):
                waiting.extend(item.values())
        if len(waiting) + n_values > _MOST_VALUES or n_characters > _ALLOWANCE:
            return -1
    return n_values + n_characters


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


_OWN_NAMES = globals()
_EXIT_CODE = Limits.__exit__.__code__
