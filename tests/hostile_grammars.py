"""Grammars and schemas that would cost the stack, the memory or the time of a careless reader, each
with what it must raise (or None: it is taken). Run as a script, it tries all of them in one process
and prints how each ended: `python hostile_grammars.py MODEL.gguf`."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import phiggml as pg
from grammar_walks import spelt, state_of
from phiggml import _core

Call = Callable[[pg.Model], object]
Case = tuple[Call, type[BaseException] | None]

INPUT = pg.InputError
UNSUPPORTED = pg.UnsupportedError
SESSION = pg.SessionError
MANY = 100_000


def _parsed(text: Any) -> Call:
    return lambda _model: pg.Grammar(text)


def _converted(schema: Any) -> Call:
    return lambda _model: pg.Grammar.from_json_schema(schema)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _value(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _circular() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def _chain(n: int, last: str) -> str:
    return "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(n)) + f"r{n} ::= {last}"


def _references(n: int) -> dict[str, Any]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": {"type": "null"}}}


def _doubled(n: int) -> dict[str, Any]:
    """2^n parts, written out."""
    links = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(n)}
    last = {"type": "object", "properties": {"a": {"type": "null"}}}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": last}}


def _read(text: str, letters: str) -> Call:
    """The letters accepted one by one, with a look at the whole vocabulary at each."""

    def call(model: pg.Model) -> None:
        state = state_of(model, text)
        for token in spelt(model, letters):
            state.allowed()
            state.accept(token)

    return call


def _on_small_stack(case: Call) -> Call:
    def call(model: pg.Model) -> None:
        threading.stack_size(256 * 1024)
        try:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(case, model).result()
        finally:
            threading.stack_size(0)

    return call


def _mutated(_model: pg.Model) -> None:
    """Grammars with characters changed at random end in one of two ways."""
    chance = random.Random(5)
    whole = 'root ::= "a" (b | [c-e]{2,3})* # so\nb ::= [^\\n"] "\\x41"? .{0,1} | root "]"\n'
    for _ in range(4000):
        text = list(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text))
            text[at : at + chance.randint(0, 3)] = chance.choice('"\\[](){}|*+?.:=#<!^-,09a\n é')
        try:
            pg.Grammar("".join(text))
        except (pg.InputError, pg.UnsupportedError) as error:
            assert str(error).startswith("grammar: "), error


def _random_schemas(_model: pg.Model) -> None:
    """Any JSON under any keyword ends in one of two ways."""
    chance = random.Random(6)
    keywords = [
        *["type", "enum", "const", "properties", "required", "additionalProperties", "items"],
        *["prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format"],
        *[
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "anyOf",
            "oneOf",
            "allOf",
            "$ref",
            "$defs",
            "a",
        ],
    ]
    values = ["object", "array", "string", "integer", "^a$", "#", "#/$defs/a", "a", "date", "(["]
    plain = [*values, 0, -1, 3, 2.5, 10**30, True, False, None, "", "\ud800", "\0"]

    def some(depth: int) -> Any:
        kind = chance.random()
        if depth == 0 or kind < 0.3:
            return chance.choice(plain)
        if kind < 0.5:
            return [some(depth - 1) for _ in range(chance.randint(0, 3))]
        return {chance.choice(keywords): some(depth - 1) for _ in range(chance.randint(0, 3))}

    for _ in range(8000):
        schema = {chance.choice(keywords): some(3) for _ in range(chance.randint(1, 3))}
        try:
            pg.Grammar.from_json_schema(schema)
        except (pg.InputError, pg.UnsupportedError) as error:
            assert str(error).startswith("json_schema: "), error


CASES: dict[str, Case] = {
    "parentheses": (_parsed("root ::= " + "(" * MANY), INPUT),
    "parentheses, closed": (_parsed("root ::= " + "(" * 201 + '"a"' + ")" * 201), INPUT),
    "parentheses, as many as are taken": (
        _on_small_stack(_parsed("root ::= " + "(" * 200 + '"a"' + ")" * 200)),
        None,
    ),
    "repetition of 2^31 - 1": (_parsed("root ::= [a-z]{0,2147483647}"), INPUT),
    "repetition of 10^40": (_parsed('root ::= "a"{' + "9" * 40 + "}"), INPUT),
    "repetition of a long text": (_parsed('root ::= "' + "a" * 500_000 + '"{2000}'), INPUT),
    "repetition in repetition": (_parsed("root ::= ((([a-z]{0,2000}){0,2000}){0,2000})"), INPUT),
    "repetitions in a row": (_parsed('root ::= "a"' + "{2000}" * 5), INPUT),
    "many repetitions": (_parsed("root ::= " + "[ab]{2000} " * 2000), INPUT),
    "backward repetition": (_parsed("root ::= [a-z]{3,1}"), INPUT),
    "repetitions of a long name": (
        _parsed(f"root ::= {'x' * 50_000}\n{'x' * 50_000} ::= [a]{{0,2000}}"),
        INPUT,
    ),
    "a text too long": (_parsed("# " + "x" * 2**20), INPUT),
    "blanks": (_parsed(" \n" * MANY), INPUT),
    "comment": (_parsed("#" * 2**20), INPUT),
    "not text": (_parsed(b'root ::= "a"'), INPUT),
    "NUL": (_parsed('root ::= "a"\0\nx'), INPUT),
    "lone surrogate": (_parsed('root ::= "\ud800"'), INPUT),
    "no UTF-8": (lambda _model: _core.grammar.parse(b'root ::= "\xff"'), INPUT),
    "character cut off": (lambda _model: _core.grammar.parse(b'root ::= "\xf0\x9f'), INPUT),
    "escape at the end": (_parsed('root ::= "\\'), INPUT),
    "hexadecimal at the end": (_parsed('root ::= "\\U0000'), INPUT),
    "token number of 10^30": (_parsed("root ::= <[" + "9" * 30 + "]>"), UNSUPPORTED),
    "chain": (_on_small_stack(_parsed(_chain(40_000, '"a"'))), None),
    "chain of nothing": (_on_small_stack(_parsed(_chain(40_000, ""))), None),
    "circle": (_on_small_stack(_parsed(_chain(40_000, "r0"))), INPUT),
    "alternatives": (_parsed("root ::= " + " | ".join(f'"{i}"' for i in range(50_000))), None),
    "more alternatives than are taken": (
        _parsed("root ::= " + "|".join(["[a]"] * 70_000)),
        INPUT,
    ),
    "mutated": (_mutated, None),
    "readings": (_read('root ::= "d" | "a" root "b" | "a" root "c"', "a" * 40), SESSION),
    "readings that meet again": (
        _read('root ::= x* "b"\nx ::= "a" | "a" "a" | "a" x "c"', "a" * 200),
        None,
    ),
    "repetitions multiplied": (
        _read("root ::= x{0,999}\nx ::= y{0,999}\ny ::= [ab]{0,999}", "ab" * 100),
        INPUT,
    ),
    "many classes": (
        _read(
            "root ::= (" + "|".join(f"[{chr(i)}-\u9fff] [a-c]" for i in range(256, 900)) + ")*",
            "漢a" * 20,
        ),
        None,
    ),
    "letters of many values": (
        lambda model: _read(
            str(pg.Grammar.from_json_schema({"enum": [f"value {i:05}" for i in range(10_000)]})),
            '"value 04321"',
        )(model),
        None,
    ),
    "schema in text, deep": (_converted('{"items":' * MANY), INPUT),
    "schema in mappings, deep": (_converted(_nested(10_000)), INPUT),
    "schema, less deep": (_converted(_nested(300)), INPUT),
    "schema, as deep as is taken": (_on_small_stack(_converted(_nested(32))), None),
    "schema that holds itself": (_converted(_circular()), INPUT),
    "constant, deep": (_converted({"const": _value(600)}), INPUT),
    "constant, as deep as is taken": (_on_small_stack(_converted({"const": _value(400)})), None),
    "references": (_on_small_stack(_converted(_references(3000))), None),
    "references without end": (_converted(_references(11_000)), INPUT),
    "parts doubled": (_converted(_doubled(60)), None),
    "types doubled": (
        _converted(json.dumps(_nested(20)).replace('"array"', '["array", "null"]')),
        None,
    ),
    "many values": (_converted({"enum": [f"{i}" for i in range(60_000)]}), None),
    "too many values": (_converted({"enum": [f"value {i}" for i in range(100_000)]}), INPUT),
    "many alternatives": (_converted({"anyOf": [{"const": i} for i in range(9_000)]}), None),
    "many of which one": (_converted({"oneOf": [{"const": i} for i in range(2_000)]}), UNSUPPORTED),
    "many properties": (_converted({"properties": {f"p{i}": {} for i in range(256)}}), None),
    "too many properties": (
        _converted({"properties": {f"p{i}": {} for i in range(257)}}),
        UNSUPPORTED,
    ),
    "long names": (
        _on_small_stack(_converted({"properties": {"漢" * 255 + str(i): {} for i in range(10)}})),
        None,
    ),
    "a name too long": (_converted({"properties": {"漢" * MANY: {}}}), UNSUPPORTED),
    "a long constant": (_on_small_stack(_converted({"const": '"' * 200_000})), None),
    "groups of a pattern": (_converted({"pattern": "(" * MANY}), UNSUPPORTED),
    "groups as many as are taken": (
        _on_small_stack(_converted({"pattern": "(a" * 40 + ")*" * 40})),
        None,
    ),
    "a long pattern": (_converted({"pattern": "^" + "ab?" * 20_000 + "$"}), None),
    "repetitions of a pattern": (_converted({"pattern": "^(?:.{2000}){2000}$"}), None),
    "repetitions in a pattern": (_converted({"pattern": "^((.{0,99}){0,99}){0,99}$"}), None),
    "lone surrogate in a schema": (_converted({"const": "\ud800"}), INPUT),
    "NUL in a schema": (_converted({"properties": {"\0": {"const": "\0"}}}), None),
    "network": (_converted({"$ref": "http://127.0.0.1:9/x"}), UNSUPPORTED),
    "random schemas": (_random_schemas, None),
}


def main() -> None:
    with pg.Model(sys.argv[1]) as model:
        for name, (call, expected) in CASES.items():
            print(name, end="", flush=True)
            try:
                call(model)
                raised = None
            except (pg.PhiggmlError, MemoryError, RecursionError) as error:
                raised = type(error)
            print(": ok" if raised is expected else f": {raised}, not {expected}", flush=True)
    print("all done")


if __name__ == "__main__":
    main()
