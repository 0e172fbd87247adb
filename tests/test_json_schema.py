"""JSON schemas: what is generated under one is JSON that it allows, and what would not be heeded is
refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

import phiggml as pg
from grammar_walks import by_chance, takes

PERSON = {  # as pydantic writes it
    "$defs": {
        "Address": {
            "properties": {
                "street": {"title": "Street", "type": "string"},
                "number": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            },
            "required": ["street"],
            "title": "Address",
            "type": "object",
        },
        "Colour": {"enum": ["red", "green"], "title": "Colour", "type": "string"},
    },
    "description": "Somebody.",
    "properties": {
        "name": {"maxLength": 12, "minLength": 1, "title": "Name", "type": "string"},
        "age": {"exclusiveMinimum": 0, "maximum": 150, "title": "Age", "type": "integer"},
        "homes": {
            "items": {"$ref": "#/$defs/Address"},
            "maxItems": 2,
            "title": "Homes",
            "type": "array",
        },
        "colour": {"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red"},
        "code": {"pattern": r"^[A-Z]{2}-\d{3}$", "title": "Code", "type": "string"},
    },
    "required": ["name", "age", "homes"],
    "title": "Person",
    "type": "object",
}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}}}
ONE_OF = {
    "oneOf": [{**CAT, "required": ["kind", "lives"]}, {**DOG, "required": ["kind"]}],
    "discriminator": {"propertyName": "kind"},
}
TREE = {
    "type": "object",
    "properties": {
        "value": {"type": ["integer", "boolean"]},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    },
    "required": ["value"],
}

# A schema, documents that an answer under it may be, and JSON texts that it may not be.
SCHEMAS: dict[str, tuple[Any, list[Any], list[str]]] = {
    "anything": ({}, [None, 1, 'é\n"', [1, {"a": []}], -0.5e3, True], ["", "tru", "[1,]", "01"]),
    "true": (True, [{"a": 1}], ["{a: 1}"]),
    "object": ({"type": "object"}, [{}, {"a": [1]}], ["[]", "1"]),
    "map": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"a": 1, "b": -2}],
        ['{"a": "b"}'],
    ),
    "closed": ({"type": "object", "additionalProperties": False}, [{}], ['{"a": 1}']),
    "person": (
        PERSON,
        [
            {"name": "A", "age": 1, "homes": []},
            {"name": "Ada L", "age": 150, "homes": [{"street": "x", "number": None}]},
            {"name": "A", "age": 2, "homes": [], "colour": "green", "code": "AB-123"},
        ],
        ['{"name": "A", "age": 0, "homes": []}', '{"name": "", "age": 1, "homes": []}', "{}"],
    ),
    "one of": (ONE_OF, [{"kind": "cat", "lives": 9}, {"kind": "dog"}], ['{"kind": "cat"}']),
    "tree": (
        TREE,
        [{"value": 1, "children": [{"value": True}, {"value": 2, "children": []}]}],
        ['{"value": 1, "children": [1]}'],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
        [[1, None]],
        ["[]", "[1]", "[1, null, 2]"],
    ),
    "list of items": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "items": [{"const": 1}],
            "additionalItems": False,
        },
        [[1]],
        ["[2]"],
    ),
    "no items": ({"type": "array", "items": False}, [[]], ["[1]"]),
    "few items": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        [[True, False], [True] * 3],
        ["[true]", "[true, true, true, true]", "[true, 1]"],
    ),
    "values": (
        {"enum": [1, -2.5, 'a\\"', None, {"b": [True]}]},
        [1, -2.5, 'a\\"', None],
        ["2", '"a"', '{"b":[]}'],
    ),
    "constant": ({"const": "é"}, ["é"], ['"e"', '"é']),
    "typed values": ({"type": ["string", "null"], "enum": ["a", None]}, ["a", None], ["1"]),
    "types": ({"type": ["string", "integer"], "maxLength": 2}, ["ab", 123], ['"abc"', "1.5"]),
    "lengths": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ["ab", "é漢😀", 'a"b'],
        ['"a"', '"abcd"', r'"\ud83d\ude00"'],
    ),
    "date": ({"type": "string", "format": "date"}, ["2024-02-29"], ['"2024-13-01"', '"today"']),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ["123e4567-e89b-12d3-a456-426614174000"],
        ['"123e4567"'],
    ),
    "all of": (
        {
            "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "null"}}}],
            "required": ["b"],
            "$defs": {"a": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        },
        [{"a": 1, "b": None}],
        ['{"a": 1}', '{"b": null}'],
    ),
    "required beyond": (
        {"type": "object", "required": ["a"], "additionalProperties": {"type": "null"}},
        [{"a": None}],
        ["{}", '{"a": 1}'],
    ),
    "pointers": (
        {
            "$ref": "#/definitions/a~1b%25/anyOf/1",
            "definitions": {"a/b%": {"anyOf": [{"const": 1}, {"const": 2}]}},
        },
        [2],
        ["1"],
    ),
    # Names that become the same rule's name, or one that the converter has for itself.
    "alike": (
        {
            "type": "object",
            "properties": {
                "a b": {"const": 1},
                "a-b": {"const": 2},
                "a_b": {"const": 3},
                "string": {"const": 4},
                "space": {"const": 5},
                "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/x y"}}},
            },
            "required": ["a b", "a-b", "a_b", "string", "space", "a"],
            "$defs": {"x y": {"const": 6}, "x-y": {"const": 7}},
        },
        [{"a b": 1, "a-b": 2, "a_b": 3, "string": 4, "space": 5, "a": {"b": 6}}],
        ['{"a b": 1, "a-b": 1, "a_b": 3, "string": 4, "space": 5, "a": {}}'],
    ),
    "odd names": (
        {
            "type": "object",
            "properties": {'"]\\': {"const": 1}, "ref-defs-def0": {"$ref": "#/$defs/d"}, "é": {}},
            "required": ['"]\\', "ref-defs-def0"],
            "$defs": {"d": {"const": 2}},
        },
        [{'"]\\': 1, "ref-defs-def0": 2}, {'"]\\': 1, "ref-defs-def0": 2, "é": []}],
        ['{"ref-defs-def0": 2}'],
    ),
}


def dumped(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


@pytest.mark.parametrize("name", SCHEMAS)
def test_takes_documents_and_no_others(nano_model: pg.Model, name: str) -> None:
    schema, documents, others = SCHEMAS[name]
    grammar = pg.Grammar.from_json_schema(schema)
    for document in documents:
        jsonschema.validate(document, schema)
        for text in (dumped(document), json.dumps(document, ensure_ascii=False, indent=2)):
            assert takes(nano_model, grammar, text), text
    for text in others:
        assert not takes(nano_model, grammar, text), text


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_by_chance_are_valid(nano_model: pg.Model, name: str) -> None:
    schema = SCHEMAS[name][0]
    grammar = pg.Grammar.from_json_schema(schema)
    n_ended = 0
    for seed in range(8):
        answer = by_chance(nano_model, grammar, seed)
        if answer is not None:
            jsonschema.validate(json.loads(answer.decode()), schema)
            n_ended += 1
    assert n_ended >= 4


def random_schema(chance: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["integer", "string", "enum", "boolean", "null", "number", "pattern"]
    kind = chance.choice(
        kinds if depth == 0 else [*kinds, *["object", "array", "anyOf", "tuple"] * 2]
    )
    if kind == "object":
        names = chance.sample(["a", "b", "long name", "é", 'q"', "x-y"], chance.randint(0, 4))
        properties = {name: random_schema(chance, depth - 1) for name in names}
        required = [name for name in names if chance.random() < 0.5]
        return {"type": "object", "properties": properties, "required": required}
    if kind == "array":
        least = chance.randint(0, 2)
        items = random_schema(chance, depth - 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}
    if kind == "tuple":
        n = chance.randint(1, 3)
        return {
            "type": "array",
            "prefixItems": [random_schema(chance, depth - 1) for _ in range(n)],
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]}
    if kind == "enum":
        return {"enum": chance.sample([1, "a", None, [2], {"k": "v"}, 1.5, True], 3)}
    if kind == "integer":
        low = chance.randint(-300, 300)
        return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 1500)}
    if kind == "string":
        return {"type": "string", "minLength": chance.randint(0, 2), "maxLength": 4}
    if kind == "pattern":
        return {"type": "string", "pattern": chance.choice(list(PATTERNS))}
    return {"type": kind}


PATTERNS = [
    "^a.c$",
    "^[^a]+$",
    r"^\d{3}-[a-z]{1,2}$",
    "b",
    "^a|c$",
    "^(?:ab|c)*$",
    r"^a\.*$",
    r'^["\\]$',
    r"^\s?\w+$",
    r"^[\w.-]+@[\w-]+\.[a-z]{2,}$",
    "^$",
    "",
    r"^\u0061\x62$",
    "^(a(b(c)?)?)?$",
    r"^[^\d\s]a{2}$",
    "^é+|[α-ω]$",
    r"^\D\W?$",
    r"^a{0,2}?b$",
    r"^[\]a]$",
    r"^(\d)\/$",
    "^[a-c-]$",
    r"^\n$",
    "^(|a)$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_those_of_an_expression(nano_model: pg.Model, pattern: str) -> None:
    grammar = pg.Grammar.from_json_schema({"type": "string", "pattern": pattern})
    # Python's $ comes also before a line's end.
    expression = pattern.replace("$", r"\Z")
    dialects = [re.compile(expression, flag) for flag in (re.ASCII, re.UNICODE)]
    # What is no digit of any script, no letter, no space, is generated of ASCII alone.
    is_whole = re.search(r"\\[DWS]|\[\^\\", pattern) is None
    parts = [
        "a",
        "b",
        "c",
        "ab",
        "1",
        "23",
        "-",
        ".",
        '"',
        "\\",
        " ",
        "é",
        "ω",
        "x@y.zz",
        "]",
        "/",
    ]
    chance = random.Random(3)
    words = [
        "",
        *parts,
        *("".join(chance.choices(parts, k=chance.randint(2, 5))) for _ in range(150)),
    ]
    for word in [*words, "aaab", "abab", "123-x", "007-ab", "1/", "baa", "_ab", "\n"]:
        expected = all(dialect.search(word) for dialect in dialects)
        taken = takes(nano_model, grammar, dumped(word))
        assert taken == expected or (expected and not is_whole and not word.isascii()), word


@pytest.mark.parametrize("seed", range(30))
def test_answers_under_random_schemas_are_valid(nano_model: pg.Model, seed: int) -> None:
    schema = random_schema(random.Random(seed), 3)
    grammar = pg.Grammar.from_json_schema(schema)
    for chance in range(3):
        answer = by_chance(nano_model, grammar, chance)
        if answer is not None:
            jsonschema.validate(json.loads(answer.decode()), schema)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *[(0, 0), (1, 9), (-7, 12), (-105, -99), (95, 1003), (-20, 0), (100, 100), (12, 345)],
        *[(7, None), (None, -5), (None, 31), (-3, None)],
    ],
)
def test_integers_are_those_within_bounds(
    nano_model: pg.Model, low: int | None, high: int | None
) -> None:
    bounds = {"minimum": low, "maximum": high}
    schema = {"type": "integer", **{k: v for k, v in bounds.items() if v is not None}}
    grammar = pg.Grammar.from_json_schema(schema)
    for value in [
        *range(-120, 120, 3),
        *range(-22, 34),
        *range(-1010, 1011, 31),
        345,
        346,
        1003,
        1004,
        10**15,
        -(10**15),
    ]:
        within = (low is None or low <= value) and (high is None or value <= high)
        assert takes(nano_model, grammar, str(value)) == within, value
    for text in ("01", "-01", "00", "-", "1.0", "1e3", "+1", "-00"):
        assert not takes(nano_model, grammar, text), text


def test_bounds_may_be_fractions_or_exclusive(nano_model: pg.Model) -> None:
    schema = {"type": "integer", "exclusiveMinimum": 1.5, "minimum": 0, "exclusiveMaximum": 4}
    grammar = pg.Grammar.from_json_schema(schema)
    assert [n for n in range(-9, 20) if takes(nano_model, grammar, str(n))] == [2, 3]


def test_a_recursive_schema_goes_deep(nano_model: pg.Model) -> None:
    document: dict[str, Any] = {"value": 1}
    for _ in range(200):
        document = {"value": True, "children": [document]}
    grammar = pg.Grammar.from_json_schema(TREE)
    assert takes(nano_model, grammar, dumped(document))


def test_text_and_mapping_are_the_same() -> None:
    grammar = pg.Grammar.from_json_schema(PERSON)
    assert pg.Grammar.from_json_schema(json.dumps(PERSON)) == grammar
    assert pg.Grammar.from_json_schema(True) == pg.Grammar.from_json_schema({})


WRONG: dict[str, tuple[Any, str]] = {
    "type of another kind": ({"type": 5}, "#/type: '5' is none of object"),
    "unknown type": ({"items": {"type": "str"}}, "#/items/type: 'str'"),
    "no type": ({"type": []}, "#/type: it names none"),
    "a list": ({"anyOf": [[]]}, r"#/anyOf/0: it is '\[\]', no schema"),
    "no schema": (5, "it is int"),
    "no alternatives": ({"anyOf": []}, "#/anyOf: it is no list"),
    "false": (False, "false allows no value"),
    "false inside": ({"properties": {"a": False}}, "#/properties/a: false"),
    "no JSON": ("{", "it is no JSON: Expecting"),
    "a name twice": ('{"type": "null", "type": "string"}', "'type' stands twice"),
    "NaN": ('{"const": NaN}', "NaN is no number"),
    "infinity": ('{"const": 1e999}', "1e999 is no number"),
    "NaN in a mapping": ({"const": float("nan")}, "it is no JSON"),
    "a set": ({"enum": {1}}, "it is no JSON"),
    "no values": ({"enum": []}, "#/enum: it is no list"),
    "value of another type": ({"type": "string", "enum": ["a", 1]}, "#/enum: '1' is not of"),
    "missing definition": ({"$ref": "#/$defs/x"}, r"there is no '#/\$defs/x'"),
    "reference to itself": ({"$ref": "#"}, "left recursion"),
    "circle of references": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "left recursion",
    ),
    "circle in allOf": (
        {"allOf": [{"$ref": "#/$defs/a"}, {}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
        "refers to itself",
    ),
    "endless": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "no text completes it",
    ),
    "lengths": ({"minLength": 3, "maxLength": 2}, "maxLength is below minLength"),
    "negative length": ({"maxLength": -1}, "#/maxLength: it is negative"),
    "fraction of items": ({"minItems": 1.5}, "#/minItems: it is no integer"),
    "bounds": ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer"),
    "bound of text": ({"type": "integer", "minimum": "3"}, "#/minimum: it is no number"),
    "required": ({"required": "a"}, "#/required: it is no list of names"),
    "properties": ({"properties": []}, "#/properties: it is no object"),
    "pattern of another kind": ({"pattern": 5}, "#/pattern: it is no string"),
    "pattern: group": ({"pattern": "(a"}, "#/pattern: .*: a group is not closed"),
    "pattern: repeat": ({"pattern": "*a"}, "nothing to repeat"),
    "pattern: class": ({"pattern": "[a"}, "it ends too soon"),
    "pattern: range": ({"pattern": "[z-a]"}, "upside down"),
    "pattern: closed": ({"pattern": "a)"}, "closed that was not opened"),
    "pattern: backslash": ({"pattern": "a\\"}, "ends too soon"),
    "pattern: escape": ({"pattern": r"\u12"}, "hexadecimal digits"),
    "pattern: braces": ({"pattern": "a{3,2}"}, "above the second"),
    "nested": ("[" * 10_000 + "]" * 10_000, "nested too deep"),
}

UNHEEDED: dict[str, tuple[Any, str]] = {
    "another document": ({"$ref": "https://example.org/x"}, r"#/\$ref: 'https://example.org/x'"),
    "a file": ({"items": {"$ref": "file:///etc/passwd"}}, r"#/items/\$ref: 'file"),
    "an anchor": ({"$ref": "#name"}, "is not followed"),
    "beside a reference": (
        {"$ref": "#/$defs/a", "minLength": 2, "$defs": {"a": {"type": "string"}}},
        r"#: keyword 'minLength' would not be heeded beside '\$ref'",
    ),
    "beside anyOf": ({"anyOf": [{}], "maxLength": 1}, "'maxLength' would not be heeded beside"),
    "beside enum": ({"enum": ["a"], "pattern": "a"}, "'pattern' would not be heeded beside 'enum'"),
    "beside a pattern": ({"pattern": "a", "maxLength": 1}, "'maxLength' .* beside 'pattern'"),
    "both": ({"anyOf": [{}], "oneOf": [{}]}, "'oneOf' would not be heeded beside 'anyOf'"),
    "one of two": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "match both 0 and 1"),
    "one of open": ({"oneOf": [CAT, DOG]}, "match both 0 and 1"),
    "number": ({"type": "number", "minimum": 0}, "#/minimum: bounds are heeded for integers"),
    "bounds of anything": ({"maximum": 3}, "#/maximum: bounds"),
    "two kinds": ({"minLength": 1, "minItems": 2}, "about array and string"),
    "format": ({"type": "string", "format": "email"}, "#/format: 'email' would not be heeded"),
    "too long": ({"maxLength": 2001}, "#/maxLength: 2001 is more than"),
    "tuple of more": ({"prefixItems": [{}], "minItems": 2}, "#/prefixItems: minItems or maxItems"),
    "a star": ({"properties": {"*": {}}}, "#/properties: '\\*' is not taken"),
    "all of strings": (
        {"allOf": [{"minLength": 1}, {"maxLength": 3}]},
        "#/allOf: parts are joined",
    ),
    "all of twice": (
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"a": {"type": "null"}}}]},
        "two parts say different things of 'a'",
    ),
    "look-ahead": ({"pattern": "^(?=a)b$"}, "#/pattern: .*holds a look-around"),
    "back reference": ({"pattern": r"(a)\1"}, r"holds \\1"),
    "word border": ({"pattern": r"\bword\b"}, r"holds \\b"),
    "property of characters": ({"pattern": r"\p{L}"}, r"holds \\p"),
    "anchor inside": ({"pattern": "a^b"}, "holds \\^ inside"),
    "control character": ({"pattern": r"^\x01$"}, "without any character"),
    "pattern repeats": ({"pattern": "a{5000}"}, "2000 repetitions"),
    "large integer": ({"const": 2**64}, "more than 64 bits"),
    **{
        name: (
            {"type": "object", name: value},
            f"#: keyword '{re.escape(name)}' would not be heeded",
        )
        for name, value in {
            "patternProperties": {"a": {}},
            "propertyNames": {},
            "minProperties": 1,
            "dependentRequired": {},
            "unevaluatedProperties": False,
            "if": {},
            "not": {},
            "contains": {},
            "uniqueItems": True,
            "multipleOf": 2,
            "$dynamicRef": "#a",
            "nullable": True,
            "requred": ["a"],
        }.items()
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    schema, words = WRONG[name]
    with pytest.raises(pg.InputError, match=words) as caught:
        pg.Grammar.from_json_schema(schema)
    assert str(caught.value).startswith("json_schema: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", UNHEEDED)
def test_what_would_not_be_heeded_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    schema, words = UNHEEDED[name]
    with pytest.raises(pg.UnsupportedError, match=words) as caught:
        pg.Grammar.from_json_schema(schema)
    assert str(caught.value).startswith("json_schema: ")
    assert capfd.readouterr() == ("", "")
