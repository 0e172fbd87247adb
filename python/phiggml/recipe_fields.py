"""What a recipe is made of, checked, whether a call or a file gave it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from phiggml.errors import InputError
from phiggml.recipe_type import model_type, short, tensor_type

__all__ = ["CHOICES", "FIELDS", "TypeTable", "checked_fields", "compiled"]

# What a recipe shares with QuantizeOptions, and what that has where nothing is given.
CHOICES: Mapping[str, bool | None] = MappingProxyType(
    {"pure": False, "quantize_output": True, "output_type": None, "embedding_type": None}
)
FIELDS = ("type", *CHOICES, "overrides", "tensors")
# Names of tensors have at most 63 bytes.
_MOST_CHARACTERS = 1000
_MOST_NAME_BYTES = 63


def checked_fields(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns a recipe's fields as it keeps them, types by canonical names; and their faults.

    Args:
        given: some or all of FIELDS.

    Returns:
        The fields without faults, and a sentence for each fault.
    """
    faults = _Faults()
    fields: dict[str, Any] = {}
    for name in FIELDS:
        if name in given:
            with faults.gathered():
                fields[name] = _checked(name, given[name], faults)
    return fields, faults.sentences


class _Faults:
    """Sentences, each gathered where it would have been raised."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self.sentences.append(str(error).removeprefix("recipe: "))


def _checked(name: str, value: Any, faults: _Faults) -> object:
    if name == "type":
        return model_type(value)
    if name in ("output_type", "embedding_type"):
        return None if value is None else tensor_type(value, name)
    if name == "overrides":
        return _types_by_text("override", value, faults, check=compiled)
    if name == "tensors":
        return _types_by_text("tensor", value, faults, check=_check_name)
    if not isinstance(value, bool):
        raise InputError(f"recipe: {name}: {short(value)}: it must be true or false.")
    return value


class TypeTable(Mapping[str, str]):
    """Types by text, in order, that nobody can change; copied and pickled as anything else."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = dict(types)

    def __getitem__(self, text: str) -> str:
        return self._types[text]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def __repr__(self) -> str:
        return repr(self._types)


def _types_by_text(
    what: str, value: Any, faults: _Faults, *, check: Callable[[Any], object]
) -> TypeTable:
    if not isinstance(value, Mapping):
        raise InputError(f"recipe: {what}s: {short(value)}: it must be a mapping to types.")
    types: dict[str, str] = {}
    for text, type in value.items():
        with faults.gathered():
            check(text)
        with faults.gathered():
            types[text] = tensor_type(type, f"{what} {short(text)}")
    return TypeTable(types)


def compiled(expression: Any) -> re.Pattern[str]:
    """Returns an override's expression, compiled.

    Raises:
        InputError: it is none.
    """
    wrong = f"recipe: override {short(expression)}: it is no regular expression"
    if not isinstance(expression, str) or len(expression) > _MOST_CHARACTERS:
        raise InputError(f"{wrong}, which is text of {_MOST_CHARACTERS} characters at most.")
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{wrong} ({error}). Escape what is meant literally.") from error


def _check_name(name: Any) -> None:
    try:
        fits = isinstance(name, str) and 1 <= len(name.encode()) <= _MOST_NAME_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise InputError(
            f"recipe: tensor {short(name)}: it is no tensor's name, which is text of 1 to "
            f"{_MOST_NAME_BYTES} bytes."
        )
