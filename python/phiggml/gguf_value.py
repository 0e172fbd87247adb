"""Metadata values of a GGUF file: their exact types, and how they become bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError

__all__ = ["GGUFStrings", "GGUFValue", "encode_string", "encode_value"]

# Source: the table of metadata value types in the GGUF specification; dtype None: of no fixed size.
_TYPES: dict[str, tuple[int, str | None]] = {
    "UINT8": (0, "<u1"),
    "INT8": (1, "<i1"),
    "UINT16": (2, "<u2"),
    "INT16": (3, "<i2"),
    "UINT32": (4, "<u4"),
    "INT32": (5, "<i4"),
    "FLOAT32": (6, "<f4"),
    "BOOL": (7, "?"),
    "STRING": (8, None),
    "UINT64": (10, "<u8"),
    "INT64": (11, "<i8"),
    "FLOAT64": (12, "<f8"),
}
_ARRAY_ID = 9
_NAME_OF_DTYPE = {np.dtype(code): name for name, (_, code) in _TYPES.items() if code is not None}
_STRINGS_AT_ONCE = 4096


@dataclass(frozen=True)
class GGUFValue:
    """A metadata value with its exact GGUF type, for when the default would be another.

    Args:
        value: bool, int, float or str; or a sequence of one of these, or a one-dimensional array.
        type: "UINT8" ... "FLOAT64", "BOOL" or "STRING"; of a sequence, the type of its elements.

    Raises:
        InputError: there is no such type.

    Source:
        The GGUF specification's metadata value types.

    Example:
        >>> GGUFValue(7, "UINT64")
        GGUFValue(value=7, type='UINT64')
    """

    value: Any
    type: str

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type.upper() not in _TYPES:
            raise InputError(
                f"GGUFValue: {self.type!r}: no GGUF value type. One of {', '.join(_TYPES)}."
            )
        object.__setattr__(self, "type", self.type.upper())


class GGUFStrings(Sequence[str]):
    """An array of strings in a GGUF file, decoded when asked for; equal to a list of the same.

    Bytes that are not UTF-8 appear as lone surrogates (errors="surrogateescape").

    Cost:
        An index reads at most 64 of the strings; list() and slices decode in one go. It
        keeps the file mapped.
    """

    __slots__ = ("_array",)

    def __init__(self, array: _core.gguf.StringArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if not chosen:
                return []
            first, last = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
            return self._array.between(first, last + 1)[:: chosen.step]
        position = range(len(self))[index]
        return self._array.at(position)

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """Where the value stands first.

        Raises:
            ValueError: it is not there.
        """
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not in this array of strings")
        found: int = range(len(self))[start:stop][self[start:stop].index(value)]
        return found

    def __iter__(self) -> Iterator[str]:
        starts = range(0, len(self), _STRINGS_AT_ONCE)
        return itertools.chain.from_iterable(
            self._array.between(start, start + _STRINGS_AT_ONCE) for start in starts
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GGUFStrings | list | tuple):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"<GGUFStrings: {len(self)} strings: {shown}{', ...' if len(self) > 3 else ''}>"


def encode_string(text: str, what: str) -> bytes:
    """Length and bytes of a string; lone surrogates stand for the bytes they were read from."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: it holds the lone surrogate U+{ord(text[error.start]):04X}: "
            "only those that stand for single bytes can be written."
        ) from error
    return struct.pack("<Q", len(encoded)) + encoded


def encode_value(value: Any, what: str) -> bytes:
    """The type and the bytes of a metadata value; `what` begins the message of an error."""
    if isinstance(value, GGUFValue):
        if _is_sequence(value.value):
            return _encode_array(value.value, value.type, what)
        return _encode_scalar(value.value, value.type, what)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if _is_sequence(value):
        return _encode_array(value, _array_type(value, what), what)
    return _encode_scalar(value, _scalar_type(value, what), what)


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _scalar_type(value: Any, what: str) -> str:
    if isinstance(value, bool):
        return "BOOL"
    if isinstance(value, str):
        return "STRING"
    if isinstance(value, np.generic):
        return _type_of_dtype(value.dtype, what)
    if isinstance(value, float):
        return "FLOAT32"
    if isinstance(value, int):
        # The first that fits: the format's habit for counts is unsigned 32 bits.
        for name in ("UINT32", "INT32", "UINT64", "INT64"):
            if _fits(value, name):
                return name
        raise InputError(f"{what}: {value} does not fit 64 bits.")
    raise InputError(
        f"{what}: a value of type {type(value).__name__} cannot be written: "
        "only bool, int, float, str, and sequences of one of these can."
    )


def _array_type(values: Any, what: str) -> str:
    if isinstance(values, GGUFStrings):
        return "STRING"
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OUT":
        return _type_of_dtype(values.dtype, what)
    if len(values) == 0:
        raise InputError(
            f"{what}: an empty sequence has no element type. "
            "Pass GGUFValue([], 'STRING') or an empty numpy array."
        )
    kinds = {_element_kind(element, what) for element in values}
    if kinds == {"INT32", "FLOAT32"}:
        return "FLOAT32"
    if len(kinds) > 1:
        raise InputError(
            f"{what}: its elements are of several types ({', '.join(sorted(kinds))}): "
            "an array has one. Pass GGUFValue(values, type) with the one you mean."
        )
    return kinds.pop()


def _element_kind(element: Any, what: str) -> str:
    if isinstance(element, np.generic):
        return _type_of_dtype(element.dtype, what) if not isinstance(element, str) else "STRING"
    if isinstance(element, bool):
        return "BOOL"
    if isinstance(element, int):
        return "INT32"
    return _scalar_type(element, what)


def _type_of_dtype(dtype: np.dtype[Any], what: str) -> str:
    name = _NAME_OF_DTYPE.get(dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype)
    if name is None:
        raise InputError(
            f"{what}: dtype {dtype} has no GGUF type. Convert it, for example to float32."
        )
    return name


def _fits(value: int, name: str) -> bool:
    bounds = np.iinfo(np.dtype(_TYPES[name][1]))
    return int(bounds.min) <= value <= int(bounds.max)


def _encode_scalar(value: Any, name: str, what: str) -> bytes:
    kind, code = _TYPES[name]
    head = struct.pack("<I", kind)
    if code is None:
        if not isinstance(value, str):
            raise InputError(f"{what}: {value!r} is no str, and its type is STRING.")
        return head + encode_string(value, what)
    return head + _numbers([value], name, what).tobytes()


def _encode_array(values: Any, name: str, what: str) -> bytes:
    kind, code = _TYPES[name]
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise InputError(f"{what}: an array of {values.ndim} axes: metadata arrays have one.")
    head = struct.pack("<IIQ", _ARRAY_ID, kind, len(values))
    if code is None:
        parts = [head]
        for element in values:
            if not isinstance(element, str):
                raise InputError(f"{what}: {element!r} is no str, and its type is STRING.")
            parts.append(encode_string(element, what))
        return b"".join(parts)
    return head + _numbers(values, name, what).tobytes()


def _numbers(values: Any, name: str, what: str) -> npt.NDArray[Any]:
    """The values in the type's dtype; what changes more than by rounding a float is refused."""
    dtype = np.dtype(_TYPES[name][1])
    given = _as_array(values, name, what)
    if given.dtype == dtype:
        return given
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs are numbers here
            converted = given.astype(dtype)
            too_large = np.any(np.isinf(converted) & np.isfinite(given.astype(np.float64)))
        if too_large:
            raise InputError(
                f"{what}: a value is too large for {name}. Pass GGUFValue(value, 'FLOAT64')."
            )
        return converted
    info = np.iinfo(dtype)
    if given.size and (int(given.min()) < info.min or int(given.max()) > info.max):
        raise InputError(
            f"{what}: a value lies outside {name}'s range, {info.min} to {info.max}. "
            "Pass GGUFValue(value, type) with a wider type."
        )
    return given.astype(dtype)


def _as_array(values: Any, name: str, what: str) -> npt.NDArray[Any]:
    """The values as an array of bools, integers or floats, whichever fits the type."""
    wanted = {"BOOL": "b", "FLOAT32": "fiu", "FLOAT64": "fiu"}.get(name, "iu")
    try:
        given = np.asarray(values)
        kind = given.dtype.kind
        if kind == "O" or (kind == "f" and "f" not in wanted):
            # Ints beyond 64 bits, or signed beside unsigned ones: numpy would make them floats.
            given, kind = np.array([_exact_int(value) for value in values], dtype=object), "i"
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what}: its values are no numbers of type {name}.") from error
    if given.ndim != 1:
        raise InputError(f"{what}: its elements are sequences: metadata arrays have one axis.")
    if given.size and kind not in wanted:
        raise InputError(f"{what}: values of dtype {given.dtype} are no {name}.")
    return given if given.size else given.astype(np.dtype(_TYPES[name][1]))


def _exact_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError("not an integer")
    return int(value)
