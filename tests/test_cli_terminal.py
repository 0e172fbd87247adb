"""What the command line writes where: the log, colours, control characters, tables."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import GREEDY, Out, Terminal, phiggml
from phiggml import cli_terminal


def test_verbose_shows_the_log_and_only_then(nano_q4: Path, capsys: Out) -> None:
    line = ("run", nano_q4, "-p", "Hi", "-n", "1", *GREEDY)
    handlers = list(logging.getLogger("phiggml").handlers)
    assert phiggml(*line, "--verbose") == 0
    assert "DEBUG " in capsys.readouterr().err
    assert phiggml("-v", *line) == 0
    assert "DEBUG " in capsys.readouterr().err
    assert phiggml(*line) == 0
    assert "DEBUG " not in capsys.readouterr().err
    assert logging.getLogger("phiggml").handlers == handlers


@pytest.mark.parametrize(
    ("variables", "dim"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours(variables: dict[str, str], dim: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for make, escaped in ((Terminal, dim), (io.StringIO, False)):
        stream = make()
        cli_terminal.note("beside", stream=stream)
        assert stream.getvalue() == ("\x1b[2mbeside\x1b[0m\n" if escaped else "beside\n")


@pytest.mark.parametrize("make", [Terminal, io.StringIO])
def test_an_answer_cannot_steer_the_terminal(
    make: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    cli_terminal.pour("a\tb\n\x1b[2J")
    assert stream.getvalue() == ("a\tb\n\\x1b[2J" if make is Terminal else "a\tb\n\x1b[2J")


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a" * 30, "1", "b" * 90)]
    monkeypatch.setenv("COLUMNS", "50")
    whole = cli_terminal.table(("name", "n", "text"), rows, right=(1,))
    assert whole.splitlines()[1].endswith("b" * 90)
    monkeypatch.setattr(sys, "stdout", Terminal())
    clipped = cli_terminal.table(("name", "n", "text"), rows).splitlines()[1]
    assert len(clipped) == 50
    assert clipped.endswith("b...")


def test_no_cell_makes_a_table_wide_or_long() -> None:
    """A key may have 65,535 bytes, and hold line ends and what turns a line round."""
    rows = [("k" * 65535, "1"), ("a\nb\r\u2028\u202e\x1b[2J", "2"), ("\n" * 100, "3")]
    lines = cli_terminal.table(("key", "value"), rows).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 100 + 2 + 5
    assert lines[1] == "k" * 97 + "...  1"
    assert lines[2].split("  ")[0] == "a\\nb\\r\\u2028\\u202e\\x1b[2J"
    assert "".join(lines).isprintable()


def test_what_a_text_may_hold() -> None:
    """All that str.isprintable refuses is spelled out, but for spaces, and what joins letters."""
    kept = "a\tb\n\n  \u3000漢\u202f!\xa0\U0001f469\u200d\U0001f680"
    assert cli_terminal.printable(kept) == kept
    steering = "\x1b\x9b\r\x85\u2028\u2029\u202e\u2066\u200f\ufeff\udc80\xad\U000e0041"
    found = cli_terminal.printable(steering)
    assert found.isprintable()
    assert found == steering.encode("unicode_escape").decode()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(999, "999 bytes"), (1000, "1.00 kB"), (2_425_600, "2.43 MB"), (25 * 10**9, "25.00 GB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert cli_terminal.size(nbytes) == text
