"""Texts that no character, path, grammar or schema is made of, wherever a model or a session takes
one, each with what it must raise. A part of hostile_calls.py, which makes the calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import phiggml as pg

Call = Callable[[pg.Model, pg.Session], object]
Case = tuple[Call, tuple[type[BaseException], ...]]

HELLO = [{"role": "user", "content": "Hi"}]
INPUT = (pg.InputError,)


def _nested(depth: int, kind: str) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"type": "array", "items": value} if kind == "schema" else [value]
    return value


def _unmade(**settings: Any) -> Call:
    """All that answers refuses it before anything is read."""

    def call(_model: pg.Model, session: pg.Session) -> None:
        session.reset()
        refused: list[pg.PhiggmlError] = []
        for ask in (
            lambda: session.generate("dog", max_tokens=2, **settings),
            lambda: session.stream("dog", max_tokens=2, **settings),
            lambda: session.chat(HELLO, **settings),
            lambda: session.stream_chat(HELLO, **settings),
            lambda: session.astream("dog", max_tokens=2, **settings),
            lambda: session.astream_chat(HELLO, **settings),
            lambda: session.generate_batch(["dog"], max_tokens=2, **settings),
        ):
            try:
                ask()
            except pg.PhiggmlError as error:
                refused.append(error)
        assert len(refused) == 7 and session.tokens.size == 0, refused
        raise refused[0]

    return call


def _with_tools(name: str) -> Call:
    template = "{{ tools | tojson }}{{ messages[0].content }}"
    tools = [{"type": "function", "function": {"name": name, "parameters": {name: name}}}]
    return lambda m, _s: m.tokenize(pg.render_chat(template, HELLO, tools=tools))


def _path(path: str) -> dict[str, Call]:
    """All that is given the path of a file."""
    return {
        "Model": lambda _m, _s: pg.Model(path),
        "Session": lambda _m, _s: pg.Session(path),
        "Draft": lambda _m, _s: pg.Draft(path),
        "LoraAdapter": lambda m, _s: pg.LoraAdapter(m, path),
        "ControlVector": lambda _m, _s: pg.ControlVector(path),
        "save": lambda _m, s: s.save(path),
        "load": lambda _m, s: s.load(path),
    }


CASES: dict[str, Case] = {
    **{
        f"{name} with {text!r}": (call, INPUT)
        for text in ("\ud800", "a\udfffb")
        for name, call in {
            "score": lambda _m, s, t=text: s.score(t),
            "embed": lambda _m, s, t=text: s.embed([t]),
            "batch": lambda _m, s, t=text: s.generate_batch(["dog", t], max_tokens=2),
            "role": lambda _m, s, t=text: s.chat([{"role": t, "content": "x"}]),
            "grammar": _unmade(grammar=f'root ::= "{text}"'),
            "schema": _unmade(json_schema={"properties": {text: {"const": text}}}),
            "schema text": _unmade(json_schema=f'{{"const": "{text}"}}'),
            "tools": _with_tools(text),
            **_path(text),
        }.items()
    },
    **{f"{name} of NUL": (call, INPUT) for name, call in _path("a\0b").items()},
    **{
        f"{name} that is wrong": (_unmade(grammar=text), INPUT)
        for name, text in {
            "grammar": "root ::= (",
            "grammar that begins with itself": 'root ::= root "a" | "b"',
            "grammar that repeats": 'root ::= "a"{0,2147483647}',
            "grammar without root": 'x ::= "a"',
            "grammar with NUL": "root ::= \0",
        }.items()
    },
    **{
        f"schema that is wrong: {name}": (_unmade(json_schema=schema), errors)
        for name, schema, errors in (
            ("type", {"type": "x"}, INPUT),
            ("no JSON", "{", INPUT),
            ("a list", [], INPUT),
            ("unheeded", {"not": {}}, (pg.UnsupportedError,)),
            ("deep", _nested(10_000, "schema"), INPUT),
            ("deep text", '{"items":' * 10_000 + "{}" + "}" * 10_000, INPUT),
        )
    },
    "grammar and schema": (_unmade(grammar='root ::= "a"', json_schema={}), INPUT),
    "chat of nested values": (
        lambda _m, s: s.chat([{**HELLO[0], "more": _nested(10_000, "list")}]),
        INPUT,
    ),
    "tools of nested values": (
        lambda _m, s: s.chat(HELLO, tools=[{"name": "f", "parameters": _nested(10_000, "list")}]),
        INPUT,
    ),
    "NUL in a text to score": (lambda _m, s: s.score("a\0b"), ()),
    "NUL in a text to embed": (lambda _m, s: s.embed(["a\0b"]), ()),
    "NUL in prompts": (lambda _m, s: s.generate_batch(["a\0b", "\0"], max_tokens=2), ()),
    "NUL in tools": (_with_tools("\0"), ()),
    "NUL in a schema": (
        lambda _m, s: s.generate("dog", max_tokens=2, json_schema={"const": "\0"}),
        (),
    ),
}
