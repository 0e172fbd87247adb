"""What the command line writes where: the log, colours, control characters, tables."""

from __future__ import annotations

import functools
import io
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tqdm

import phiggml as pg
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


# progress -----------------------------------------------------------------------------------------


class Screen(Terminal):
    """A terminal of so many columns that keeps each state of its line."""

    def __init__(self, columns: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self.columns = columns
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def states(self) -> list[str]:
        return [state for state in self.getvalue().split("\r") if state.strip()]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """Makes stderr a screen on which a bar appears at once, and changes with each event."""

    def make(columns: int, encoding: str = "utf-8") -> Screen:
        made = Screen(columns, encoding)
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setattr(cli_terminal, "_columns_of_terminal", lambda: columns)
        monkeypatch.setattr(cli_terminal, "_BAR_AFTER_SECONDS", 1e-9)
        monkeypatch.setattr(tqdm, "tqdm", functools.partial(tqdm.tqdm, mininterval=0))
        return made

    return make


def shown(names: Sequence[str], stage: str = "quantize") -> None:
    with cli_terminal.ProgressBar() as bar:
        for i, name in enumerate(names):
            bar(pg.Progress(stage, 10**9 * (i + 1), 4 * 10**9, name, i + 1.0))


def columns(text: str) -> int:
    """Of a terminal; Han characters take two."""
    return sum(2 if "\u4e00" <= c <= "\u9fff" else 1 for c in text)


NAMES = ("blk.31.ffn_gate_exps.weight", "output.weight", "a", "")


def test_a_wide_bar_tells_all(screen: Callable[..., Screen]) -> None:
    screen_ = screen(100)
    shown(NAMES[:3])
    first, second, third = screen_.states[-3:]
    pattern = r"quantize +(\d+)%\|.*\| (\S+)/4.00G, \S+B/s, \S+ left, (\S+) *"
    for state, found in zip(
        (first, second, third),
        (
            ("25", "1.00G", "blk.31.ffn_gate_exps.weight"),
            ("50", "2.00G", "output.weight"),
            ("75", "3.00G", "a"),
        ),
        strict=True,
    ):
        match = re.fullmatch(pattern, state)
        assert match is not None, state
        assert match.groups() == found
    assert len({state.rindex("|") for state in (first, second, third)}) <= 2  # the rate's digits


def test_a_narrow_bar_keeps_what_matters(screen: Callable[..., Screen]) -> None:
    screen_ = screen(40)
    shown(NAMES[:3])
    assert re.fullmatch(r" 50%, \S+ left, \S+B/s, output?[.\w]*", screen_.states[-2])
    plain = screen(40)
    shown(["", ""], "verify")
    assert re.fullmatch(r"verify +50%\|.+\| \S+ left", plain.states[-1])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("width", [1, 3, 12, 40, 72, 75, 80, 133])
def test_no_name_leaves_the_line(width: int, encoding: str, screen: Callable[..., Screen]) -> None:
    """Nor steers the terminal, nor is taken for a format; Ctrl-C has room behind the bar."""
    hostile = ("a\nb\r\x1b[2J", "\u202eabc\udc80", "漢字" * 40, "{bar}{x}%s", "n" * 65_535, "é" * 9)
    screen_ = screen(width, encoding)
    shown(hostile)
    assert screen_.states or width < 3
    for state in screen_.states:
        assert state.isprintable()
        assert state.encode(encoding)
        assert columns(state) <= max(width - len("^C"), 1)
    assert "\n" not in screen_.getvalue()


def test_the_bar_is_wiped_off(screen: Callable[..., Screen]) -> None:
    screen_ = screen(80)
    with pytest.raises(KeyboardInterrupt), cli_terminal.ProgressBar() as bar:
        bar(pg.Progress("quantize", 1, 4, "a"))
        screen_.write("^C")
        raise KeyboardInterrupt
    assert screen_.getvalue().endswith("^C\r" + " " * 77 + "\r\r" + " " * 79 + "\r")


def test_a_bar_that_the_environment_forbids(
    screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen_ = screen(80)
    monkeypatch.setattr(tqdm, "tqdm", functools.partial(tqdm.tqdm, disable=True))
    shown(NAMES)
    assert screen_.getvalue() == ""


def test_no_bar_into_a_file_nor_when_quiet(screen: Callable[..., Screen], capsys: Out) -> None:
    shown(NAMES)
    assert capsys.readouterr().err == ""
    screen_ = screen(80)
    with cli_terminal.ProgressBar(quiet=True) as bar:
        bar(pg.Progress("quantize", 1, 4, "a"))
    assert screen_.getvalue() == ""


def test_a_stage_has_a_bar_of_its_own(screen: Callable[..., Screen]) -> None:
    screen_ = screen(80)
    with cli_terminal.ProgressBar() as bar:
        for stage, total in (("download", 10), ("quantize", 1000)):
            for done in (total // 2, total):
                bar(pg.Progress(stage, done, total))
    text = screen_.getvalue()
    assert re.search(r"download  50%.* 5\.00/10\.0,.*download 100%.*quantize  50%", text, re.DOTALL)
    assert "500/1.00k" in text
