"""JSON schemas as grammars: read, checked, and written in words that llama.cpp's converter heeds.

Upstream reads a part of each keyword and passes over the rest in silence. Here each keyword is
known, an annotation, or refused; what is known is written anew so that nothing stands beside what
upstream would see first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from phiggml import _core
from phiggml.errors import InputError
from phiggml.json_schema_alternatives import check_one_of, merged
from phiggml.json_schema_fault import unheeded, wrong
from phiggml.json_schema_pattern import plain_pattern
from phiggml.json_schema_values import checked_values, integer_bounds, lengths, type_names

__all__ = ["json_schema_to_gbnf"]

MOST_BYTES = 1 << 20
MOST_NESTING = 64
MOST_SCHEMAS = 10_000
MOST_PROPERTIES = 256
MOST_NAME = 256

ANNOTATIONS = frozenset(
    ["title", "description", "default", "examples", "example", "deprecated", "discriminator"]
) | {"readOnly", "writeOnly", "$comment", "$schema", "$defs", "definitions"}
OBJECT = frozenset(["properties", "required", "additionalProperties"])
ARRAY = frozenset(["items", "prefixItems", "minItems", "maxItems"])
STRING = frozenset(["minLength", "maxLength", "pattern", "format"])
NUMBER = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
WHOLE = frozenset(["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"])
HEEDED = OBJECT | ARRAY | STRING | NUMBER | WHOLE
FALSE_SAYS_NOTHING = frozenset(["uniqueItems", "additionalItems"])
FORMATS = frozenset(["date", "time", "date-time", "uuid"])


def json_schema_to_gbnf(schema: Mapping[str, Any] | str | bool) -> str:
    """A grammar, in GBNF, of JSON texts that the schema allows.

    Raises:
        InputError: it is no JSON schema, no value can satisfy it, or it is too large.
        UnsupportedError: a keyword of it would not be heeded.
    """
    plain = _PlainSchema(_read(schema)).written()
    try:
        text = json.dumps(plain, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise wrong("#", "a text holds lone surrogates, which are no characters") from None
    return _core.grammar.json_schema_to_gbnf(text)


def _read(schema: Mapping[str, Any] | str | bool) -> Any:
    """The schema as plain values of JSON, a copy."""
    if isinstance(schema, Mapping | bool):
        schema = _dumped(schema if isinstance(schema, bool) else dict(schema))
    elif not isinstance(schema, str):
        raise InputError(
            f"json_schema: it is {type(schema).__name__}, not a mapping or JSON text. For a "
            "pydantic model pass model.model_json_schema()."
        )
    if len(schema) > MOST_BYTES:
        rule = f"it has {len(schema)} characters; at most 2^20 are taken"
        raise wrong("#", rule, "Make it smaller.")
    try:
        return json.loads(
            schema,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refused,
            parse_float=_finite,
        )
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from None


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _no_json(error) from None


def _no_json(error: Exception) -> InputError:
    deep = isinstance(error, RecursionError)
    return wrong("#", "it is nested too deep" if deep else f"it is no JSON: {error}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise wrong("#", f"{name[:80]!r} stands twice in one object")
        found[name] = value
    return found


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refused(number)


def _refused(number: str) -> float:
    raise wrong("#", f"{number[:80]} is no number that JSON can hold here")


class _PlainSchema:
    """Writes a schema anew, as upstream's converter reads it rightly."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._n_schemas = 0
        self._names: dict[str, str] = {}  # reference -> its definition's name here
        self._pending: list[str] = []  # references to what is not written yet
        # Upstream makes rules' names of properties' and definitions' alike.
        self._prefix = "def"
        while self._prefix in _dumped(document):
            self._prefix += "x"

    def written(self) -> dict[str, Any]:
        """All of it, with the definitions that something refers to."""
        root = self._node(self._document, "#", 0)
        definitions: dict[str, Any] = {}
        while self._pending:
            reference = self._pending.pop()
            target = self._resolved(reference, "#")
            definitions[self._names[reference]] = self._node(target, reference, 0)
        return {**root, "$defs": definitions} if definitions else root

    def _node(self, schema: Any, path: str, depth: int) -> dict[str, Any]:
        if schema is False:
            raise wrong(path, "false allows no value")
        if schema is not True and not isinstance(schema, dict):
            raise wrong(path, f"it is {str(schema)[:80]!r}, no schema")
        self._n_schemas += 1
        if depth > MOST_NESTING or self._n_schemas > MOST_SCHEMAS:
            rule = f"schemas are nested deeper than {MOST_NESTING}, or more than {MOST_SCHEMAS}"
            raise wrong(path, rule, "Make it smaller.")
        if schema is True:
            return {}
        keys = _heeded(schema, path)
        if "allOf" in keys:
            return self._all_of(schema, keys, path, depth)
        for keyword, write in (
            ("$ref", self._reference),
            ("anyOf", self._any_of),
            ("oneOf", self._one_of),
        ):
            if keyword in keys:
                _check_alone(keys, keyword, path)
                return write(schema[keyword], f"{path}/{keyword}", depth)
        if keys & {"enum", "const"}:
            return _values(schema, keys, path)
        types = type_names(schema, path) if "type" in keys else _implied_types(keys, path)
        plain = [self._of_type(name, schema, path, depth + 1) for name in types]
        return plain[0] if len(plain) == 1 else {"anyOf": plain} if plain else {}

    def _of_type(self, name: str, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        if name == "object":
            return self._object(schema, path, depth)
        if name == "array":
            return self._array(schema, path, depth)
        if name == "string":
            return _string(schema, path)
        if name == "integer":
            return {"type": name, **integer_bounds(schema, path)}
        if name == "number":
            for keyword in sorted(NUMBER & schema.keys()):
                rule = "bounds are heeded for integers, not for numbers"
                raise unheeded(f"{path}/{keyword}", rule, "Remove it, or ask for an integer.")
        return {"type": name}

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        further = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            raise wrong(f"{path}/properties", "it is no object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise wrong(f"{path}/required", "it is no list of names")
        properties = {
            **properties,
            **{name: further for name in required if name not in properties},
        }
        _check_names(properties, path)
        if properties:
            return {
                "type": "object",
                "properties": {
                    name: self._node(value, f"{path}/properties/{_pointed(name)}", depth)
                    for name, value in properties.items()
                },
                "required": required,
            }
        if isinstance(further, bool):
            return {"type": "object", "properties": {}} if not further else {"type": "object"}
        further = self._node(further, f"{path}/additionalProperties", depth)
        return {"type": "object", "additionalProperties": further or True}

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        items = schema.get("items", {})
        least, most = lengths(schema, "Items", path)
        if "prefixItems" in schema or isinstance(items, list):
            listed = "prefixItems" if "prefixItems" in schema else "items"
            each = schema[listed]
            if not isinstance(each, list) or (listed == "prefixItems" and isinstance(items, list)):
                raise wrong(f"{path}/{listed}", "it is no list of schemas, or there are two")
            if least > len(each) or (most is not None and most < len(each)):
                raise unheeded(
                    f"{path}/{listed}",
                    f"minItems or maxItems says otherwise than that there are {len(each)} items",
                    "Make them agree.",
                )
            plain = [self._node(item, f"{path}/{listed}/{i}", depth) for i, item in enumerate(each)]
            return {"type": "array", "prefixItems": plain}
        if items is False and least == 0:
            return {"type": "array", "items": {}, "maxItems": 0}
        found = {"type": "array", "items": self._node(items, f"{path}/items", depth)}
        return {**found, "minItems": least, **({} if most is None else {"maxItems": most})}

    def _any_of(self, alternatives: Any, path: str, depth: int) -> dict[str, Any]:
        if not isinstance(alternatives, list) or not alternatives:
            raise wrong(path, "it is no list of schemas")
        return {
            "anyOf": [
                self._node(alternative, f"{path}/{i}", depth + 1)
                for i, alternative in enumerate(alternatives)
            ]
        }

    def _one_of(self, alternatives: Any, path: str, depth: int) -> dict[str, Any]:
        plain = self._any_of(alternatives, path, depth)
        check_one_of([self._followed(schema, path) for schema in alternatives], path)
        return plain

    def _all_of(
        self, schema: dict[str, Any], keys: set[str], path: str, depth: int
    ) -> dict[str, Any]:
        path = f"{path}/allOf"
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise wrong(path, "it is no list of schemas")
        if len(parts) == 1 and keys == {"allOf"}:
            return self._node(parts[0], f"{path}/0", depth + 1)
        own = {key: schema[key] for key in keys - {"allOf"}}
        whole = merged([own, *parts], path, followed=self._followed, heeded=_heeded)
        return self._node(whole, path, depth + 1)

    def _reference(self, reference: Any, path: str, depth: int) -> dict[str, Any]:
        self._resolved(reference, path)
        if reference not in self._names:
            self._names[reference] = f"{self._prefix}{len(self._names)}"
            self._pending.append(reference)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _followed(self, schema: Any, path: str) -> Any:
        """A schema, or what it refers to where it is a reference."""
        seen = set()
        while isinstance(schema, dict) and "$ref" in schema:
            reference = schema["$ref"]
            _check_alone(_heeded(schema, path), "$ref", path)
            schema = self._resolved(reference, path)
            if reference in seen:
                raise wrong(path, f"{reference[:80]!r} refers to itself")
            seen.add(reference)
        return schema

    def _resolved(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str):
            raise wrong(path, "it is no string")
        if reference != "#" and not reference.startswith("#/"):
            rule = f"{reference[:80]!r} is not followed, for it does not begin with '#/'"
            raise unheeded(path, rule, "Put what it refers to into $defs.")
        target = self._document
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isascii() and name.isdigit() and len(name) < 8:
                name = int(name)  # type: ignore[assignment]
            try:
                target = target[name]
            except (LookupError, TypeError):
                raise wrong(path, f"there is no {reference[:80]!r}") from None
        return target


def _heeded(schema: dict[str, Any], path: str) -> set[str]:
    """The keywords that are not annotations."""
    heeded = set()
    for key, value in schema.items():
        if key in HEEDED:
            heeded.add(key)
            continue
        says_nothing = key in ANNOTATIONS or key.startswith("x-")
        says_nothing = says_nothing or (key in FALSE_SAYS_NOTHING and value is False)
        if not says_nothing and not (key == "$id" and path == "#"):
            remedy = "Remove it, or say the same with others."
            raise unheeded(path, f"keyword {key[:80]!r} would not be heeded", remedy)
    return heeded


def _check_alone(keys: set[str], keyword: str, path: str) -> None:
    for other in sorted(keys - {keyword}):
        rule = f"keyword {other!r} would not be heeded beside {keyword!r}"
        raise unheeded(path, rule, "Remove one of them.")


def _check_names(properties: dict[str, Any], path: str) -> None:
    if len(properties) > MOST_PROPERTIES:
        rule = f"there are {len(properties)}; {MOST_PROPERTIES} are taken"
        raise unheeded(f"{path}/properties", rule, "Divide the object.")
    for name in properties:
        if name == "*" or len(name) > MOST_NAME:
            rule = (
                f"{name[:40]!r} is not taken for a name: it is '*', or above {MOST_NAME} characters"
            )
            raise unheeded(f"{path}/properties", rule, "Rename it.")


def _implied_types(keys: set[str], path: str) -> list[str]:
    """Of a schema without a type: that which its keywords are about."""
    groups = {"object": OBJECT, "array": ARRAY, "string": STRING, "number": NUMBER}
    types = [name for name, group in groups.items() if keys & group]
    if len(types) > 1:
        rule = f"its keywords are about {' and '.join(types)}"
        raise unheeded(path, rule, 'Say which it is with "type".')
    return types


def _values(schema: dict[str, Any], keys: set[str], path: str) -> dict[str, Any]:
    keyword = "enum" if "enum" in keys else "const"
    _check_alone(keys - {"type"}, keyword, path)
    types = type_names(schema, path) if "type" in keys else None
    values = schema["enum"] if keyword == "enum" else [schema["const"]]
    return {"enum": checked_values(values, types, f"{path}/{keyword}")}


def _string(schema: dict[str, Any], path: str) -> dict[str, Any]:
    keys = STRING & schema.keys()
    for keyword in ("pattern", "format"):
        if keyword not in keys:
            continue
        value = schema[keyword]
        _check_alone({*keys}, keyword, path)
        if not isinstance(value, str):
            raise wrong(f"{path}/{keyword}", "it is no string")
        if keyword == "pattern":
            value = plain_pattern(value, f"{path}/pattern")
        elif value not in FORMATS:
            rule = f"{value[:80]!r} would not be heeded; {', '.join(sorted(FORMATS))} are"
            raise unheeded(f"{path}/format", rule, "Remove it, or write a pattern.")
        return {"type": "string", keyword: value}
    least, most = lengths(schema, "Length", path)
    return {"type": "string", "minLength": least, **({} if most is None else {"maxLength": most})}


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
