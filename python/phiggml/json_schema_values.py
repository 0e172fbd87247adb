"""What a JSON schema says of single values: types, lengths, bounds, lists of them."""

from __future__ import annotations

import math
from typing import Any

from phiggml.json_schema_fault import unheeded, wrong

__all__ = ["checked_values", "integer_bounds", "lengths", "type_names", "types_of"]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
MOST_REPETITIONS = 2000
"""Beyond it upstream's grammars have no bound at all."""

MOST_INTEGER = 10**16 - 1
"""Integers of more digits are not generated."""


def type_names(schema: dict[str, Any], path: str) -> list[str]:
    """The types of a schema, each once."""
    named = schema["type"]
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or name not in TYPES:
            raise wrong(f"{path}/type", f"{str(name)[:80]!r} is none of {', '.join(TYPES)}")
    if not names:
        raise wrong(f"{path}/type", "it names none")
    return list(dict.fromkeys(names))


def types_of(value: object) -> set[str]:
    """The types that a value of JSON has."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    return {
        "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    }


def checked_values(values: Any, types: list[str] | None, path: str) -> list[Any]:
    """The values of `enum` or `const`, each of the type that the schema names."""
    if not isinstance(values, list) or not values:
        raise wrong(path, "it is no list of values")
    for value in values:
        if types is not None and not types_of(value) & {*types}:
            raise wrong(path, f"{str(value)[:80]!r} is not of the type beside it")
        _check_integers(value, path)
    return values


def _check_integers(value: Any, path: str) -> None:
    # Upstream holds them in 64 bits, and beyond as floating-point numbers.
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise unheeded(path, "an integer has more than 64 bits", "Write it as a string.")


def lengths(schema: dict[str, Any], unit: str, path: str) -> tuple[int, int | None]:
    """minItems and maxItems, or minLength and maxLength; None for no upper bound."""
    least_name, most_name = f"min{unit}", f"max{unit}"
    for name in {least_name, most_name} & schema.keys():
        value = schema[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise wrong(f"{path}/{name}", "it is no integer")
        if value < 0:
            raise wrong(f"{path}/{name}", "it is negative")
        if value > MOST_REPETITIONS:
            rule = f"{value} is more than a grammar can count, {MOST_REPETITIONS}"
            raise unheeded(f"{path}/{name}", rule, "Lower it, or remove it.")
    least = int(schema.get(least_name, 0))
    most = int(schema[most_name]) if most_name in schema else None
    if most is not None and most < least:
        raise wrong(path, f"{most_name} is below {least_name}")
    return least, most


def integer_bounds(schema: dict[str, Any], path: str) -> dict[str, int]:
    """minimum and maximum, both or none: with one alone upstream allows leading zeros."""
    least, most = -MOST_INTEGER, MOST_INTEGER
    given = False
    for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if name not in schema:
            continue
        given = True
        value = schema[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(f"{path}/{name}", "it is no number")
        if name.endswith("inimum"):
            least = max(least, math.floor(value) + 1 if name[0] == "e" else math.ceil(value))
        else:
            most = min(most, math.ceil(value) - 1 if name[0] == "e" else math.floor(value))
    if least > most:
        raise wrong(path, "no integer of at most 16 digits is within the bounds")
    return {"minimum": least, "maximum": most} if given else {}
