"""Tool calls: what JSON describes one, and where JSON ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiggml.chat_tools import JsonEnd, ToolCall, parse_tool_calls, tools_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONTAINERS = st.lists(JSON, max_size=4) | st.dictionaries(st.text(), JSON, max_size=4)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [ToolCall("f", {"a": 1})]),
        (' [{"name": "f", "parameters": {"a": [1.5]}}]\n', [ToolCall("f", {"a": [1.5]})]),
        ('[{"name": "f", "arguments": "{\\"a\\": null}"}]', [ToolCall("f", {"a": None})]),
        ('{"name": "f"}', [ToolCall("f")]),
        ('{"name": "f", "arguments": null}', [ToolCall("f")]),
        ('{"name": "f", "arguments": {}, "id": "c"}', [ToolCall("f", {}, "c")]),
        ('{"name": "f", "arguments": {}, "id": 7}', [ToolCall("f", {})]),
        (
            '[{"type": "function", "id": "c", "function": {"name": "f", "arguments": {"é": "🙂"}}},'
            ' {"name": "g"}]',
            [ToolCall("f", {"é": "🙂"}, "c"), ToolCall("g")],
        ),
    ],
)
def test_what_describes_calls(text: str, calls: list[ToolCall]) -> None:
    assert parse_tool_calls(text) == tuple(calls)
    # A call as a message describes itself.
    assert parse_tool_calls(json.dumps([call.as_message() for call in calls])) == tuple(calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now()",
        "[]",
        "{}",
        "[1]",
        '"f"',
        '[{"name": "f"}, 1]',
        '{"name": ""}',
        '{"name": 1, "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "a"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": "f", "arguments": {"a": 1},}',
        '{"name": "f"} {"name": "g"}',
        "{'name': 'f'}",
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
        '{"name": "f", "arguments": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_describes_none(text: str) -> None:
    assert parse_tool_calls(text) is None


def end_of(pieces: list[str]) -> tuple[int | None, bool]:
    """Where the document ends in the joined pieces, and whether it has failed."""
    scanner, n = JsonEnd(), 0
    for piece in pieces:
        end = scanner.add(piece)
        if end is not None:
            return n + end, False
        if scanner.failed:
            return n + scanner.n_good, True
        n += len(piece)
    return None, False


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at, i = [], 0, 0
    while at < len(text):
        size = sizes[i % len(sizes)]
        pieces.append(text[at : at + size])
        at, i = at + size, i + 1
    return pieces


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=10)


@given(document=CONTAINERS, rest=st.text(max_size=10), sizes=SIZES, indent=st.none() | st.just(1))
def test_json_ends_where_its_decoder_stops(
    document: Any, rest: str, sizes: list[int], indent: int | None
) -> None:
    text = " \n" + json.dumps(document, indent=indent, ensure_ascii=False)
    assert json.JSONDecoder().raw_decode(text.lstrip())[0] == document
    assert end_of(cut(text + rest, sizes)) == (len(text), False)
    assert end_of(cut(text[:-1], sizes)) == (None, False)


@pytest.mark.parametrize(
    ("text", "at"), [("x", 0), ('  "a"', 2), ("[}", 1), ('{"]": [)}]', 8), ("[" * 300, 200)]
)
def test_what_is_no_list_or_mapping(text: str, at: int) -> None:
    assert end_of([text]) == end_of(list(text)) == (at, True)


def test_definitions_are_flat_json() -> None:
    inner = {"name": "f", "description": "é", "parameters": {"type": "object"}}
    for tools in ([inner], [{"type": "function", "function": inner}]):
        assert tools_text(tools) == json.dumps([inner], ensure_ascii=False)
