"""Sentences of the source, with an ellipsis where a value comes in: Python's and C++'s."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ANY = "…"
_LITERAL = r'"((?:[^"\\\n]|\\.)*)"'
# Literals that the compiler joins, and values that are added between them.
_JOINED = re.compile(rf"{_LITERAL}(?:\s*(?:\+[^;\"]*?\+\s*)?{_LITERAL})*", re.DOTALL)


def of_python(path: Path) -> Iterator[str]:
    """All texts of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and (text := python_text(node)):
            yield text


def python_text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values
    )


def of_calls(path: Path, names: frozenset[str]) -> Iterator[str]:
    """The first arguments of calls: what such errors say."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
            yield python_text(node.args[0])


def of_cpp(text: str) -> Iterator[str]:
    for found in _JOINED.finditer(text):
        parts = re.split(r'(?<!\\)"', found[0])
        # Every second part is inside quotes; between two of them is white space, or a value.
        said = "".join(
            part if i % 2 else ANY if "+" in part else "" for i, part in enumerate(parts)
        )
        yield said.replace('\\"', '"')


def of_cpp_errors(path: Path, kind: str) -> Iterator[str]:
    """What a file's errors of a kind say."""
    text = path.read_text("utf-8")
    for found in re.finditer(rf"ErrorKind::{kind},(.*?)\);", text, re.DOTALL):
        # A value may also stand at the beginning.
        leading = ANY if re.match(r'\s*[^"\s]', found[1]) else ""
        [said] = of_cpp(found[1][found[1].index('"') :])
        yield leading + said


def says(source: str, quote: str) -> bool:
    """Whether a quote is what the source says, for some values."""
    if len(source.replace(ANY, "")) < 12:
        return False
    return re.fullmatch(".*".join(map(re.escape, source.split(ANY))), quote, re.DOTALL) is not None
