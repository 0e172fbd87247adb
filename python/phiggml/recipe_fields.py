"""What a recipe is made of, checked, whether a call or a file gave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from phiggml.errors import InputError
from phiggml.recipe_expression import MOST_WAYS, compiled, ways
from phiggml.recipe_type import model_type, short, tensor_type

__all__ = ["CHOICES", "FIELDS", "TypeTable", "checked_fields"]

# What a recipe shares with QuantizeOptions, and what that has where nothing is given.
CHOICES: Mapping[str, bool | None] = MappingProxyType(
    {"pure": False, "quantize_output": True, "output_type": None, "embedding_type": None}
)
FIELDS = ("type", *CHOICES, "overrides", "tensors")
# Names of tensors have at most 63 bytes.
_MOST_NAME_BYTES = 63
_MOST_OVERRIDES = 1000
_MOST_TENSORS = 1 << 18  # of a GGUF file


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
        overrides = _types_by_text("override", value, faults, check=compiled, most=_MOST_OVERRIDES)
        if sum(map(ways, overrides)) > MOST_WAYS:
            raise InputError(
                "recipe: overrides: searches for all of them could take for ever. Write fewer of "
                "* and +."
            )
        return overrides
    if name == "tensors":
        return _types_by_text("tensor", value, faults, check=_check_name, most=_MOST_TENSORS)
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
    what: str, value: Any, faults: _Faults, *, check: Callable[[Any], object], most: int
) -> TypeTable:
    if not isinstance(value, Mapping):
        raise InputError(f"recipe: {what}s: {short(value)}: it must be a mapping to types.")
    if len(value) > most:
        raise InputError(f"recipe: {what}s: there are {len(value)}, and at most {most} may be.")
    types: dict[str, str] = {}
    for text, type in value.items():
        found = None
        with faults.gathered():
            found = tensor_type(type, f"{what} {short(text)}")
        with faults.gathered():
            check(text)
            if found is not None:
                types[text] = found
    return TypeTable(types)


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
