"""`oneOf` and `allOf`, of which upstream makes any of them, and a part of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from typing import Any

from phiggml.json_schema_fault import unheeded
from phiggml.json_schema_values import types_of

__all__ = ["check_one_of", "merged"]

MOST_ALTERNATIVES = 1000
MERGE = "Write one schema instead."
MERGED = frozenset(["type", "properties", "required", "additionalProperties", "allOf"])


def check_one_of(alternatives: list[Any], path: str) -> None:
    """Refuses alternatives of which a value might match two; only any of them can be generated."""
    if len(alternatives) > MOST_ALTERNATIVES:
        rule = f"there are {len(alternatives)} alternatives; {MOST_ALTERNATIVES} are taken"
        raise unheeded(path, rule, "Use anyOf.")
    for (i, first), (j, second) in combinations(enumerate(alternatives), 2):
        if not _disjoint(first, second):
            raise unheeded(
                path,
                f"a value might match both {i} and {j}, which is not heeded",
                "Tell them apart by type, or by a required property with a const; or use anyOf.",
            )


def merged(
    parts: list[Any],
    path: str,
    *,
    followed: Callable[[Any, str], Any],
    heeded: Callable[[dict[str, Any], str], set[str]],
) -> dict[str, Any]:
    """One object schema that says what all parts say together.

    Raises:
        UnsupportedError: a part is not about an object's properties, or two say different things
            of one.
    """
    properties: dict[str, Any] = {}
    required: list[str] = []
    closed: list[set[str]] = []
    seen: set[str] = set()
    todo = list(reversed(parts))
    while todo:
        part = followed(todo.pop(), path)
        spelt = json.dumps(part)
        if spelt in seen:
            continue
        seen.add(spelt)
        keys = heeded(part, path) if isinstance(part, dict) else {"?"}
        own = part.get("properties", {}) if isinstance(part, dict) else None
        further = part.get("additionalProperties", True) if isinstance(part, dict) else None
        if not keys <= MERGED or not isinstance(own, dict) or not isinstance(further, bool):
            raise unheeded(
                path, "parts are joined only where each names an object's properties", MERGE
            )
        if part.get("type", "object") != "object" or not isinstance(part.get("required", []), list):
            raise unheeded(path, 'parts are joined only where their type is "object"', MERGE)
        for name, value in own.items():
            if properties.setdefault(name, value) != value:
                raise unheeded(path, f"two parts say different things of {name[:80]!r}", MERGE)
        required += part.get("required", [])
        if not further:
            closed.append({*own})
        todo += reversed(part.get("allOf", []))
    if any(not {*properties} <= names for names in closed):
        raise unheeded(path, "a part allows no properties but its own, and others have more", MERGE)
    whole = {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}
    return {**whole, "additionalProperties": False} if closed else whole


def _disjoint(first: Any, second: Any) -> bool:
    """Whether it is plain that no value matches both."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return False
    if _apart(_values(first), _values(second)) or _apart(_types(first), _types(second)):
        return True
    return any(
        _apart(_values(schema), _values(second["properties"][name]))
        for name, schema in _required(first).items()
        if name in _required(second)
    )


def _apart(first: set[str] | None, second: set[str] | None) -> bool:
    return first is not None and second is not None and not first & second


def _values(schema: Any) -> set[str] | None:
    """All values that a schema lists, each as text; None where it lists none."""
    if not isinstance(schema, dict) or not ("const" in schema or "enum" in schema):
        return None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or any(isinstance(value, float) for value in values):
        return None
    return {json.dumps(value, sort_keys=True) for value in values}


def _types(schema: dict[str, Any]) -> set[str] | None:
    if "type" in schema:
        named = schema["type"]
        names = {*named} if isinstance(named, list) else {named}
        return names | {"integer"} if "number" in names else names
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return None
    return {name for value in values for name in types_of(value)}


def _required(schema: dict[str, Any]) -> dict[str, Any]:
    """The properties that a schema requires of an object."""
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return {}
    names = required if isinstance(required, list) else []
    return {name: properties[name] for name in names if name in properties}
