"""The commands of phiggml chat, and messages of several lines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from command_line import GREEDY, Out, complaint, phiggml
from phiggml import cli_keyboard

Turns = list[tuple[str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Turns]:
    """What the session is asked to answer, in order, but for what commands only check."""
    seen: list[Turns] = []
    streamed = pg.Session.stream_chat

    def watched(session: pg.Session, messages: Any, **settings: Any) -> Iterator[pg.Chunk]:
        chunks = streamed(session, messages, **settings)

        def told() -> Iterator[pg.Chunk]:
            seen.append([(turn["role"], turn["content"]) for turn in messages])
            yield from chunks

        return told()

    monkeypatch.setattr(pg.Session, "stream_chat", watched)
    return seen


def talk(model: Path, *typed: str, options: tuple[str, ...] = ("-n", "3", *GREEDY)) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        return phiggml("chat", model, *options)


def test_messages_of_several_lines(nano_q4: Path, asked: list[Turns]) -> None:
    for typed, message in (
        (("a\\", "b\\", "c"), "a\nb\nc"),
        (('"""a', "", '  b"""'), "a\n\n  b"),
        (('"""', "a \\", '"""  '), "a \\"),
        (('"""one"""',), "one"),
        (('"""/help"""',), " /help"),
        ((" /help",), " /help"),
        (('say """',), 'say """'),
    ):
        assert talk(nano_q4, *typed) == 0
        assert asked.pop() == [("user", message)]
    assert talk(nano_q4, '/system """Be', 'brief."""', "Hi") == 0
    assert asked.pop() == [("system", "Be\nbrief."), ("user", "Hi")]
    for typed in ('"""a', "a\\"):
        assert talk(nano_q4, typed) == 3
    assert asked == []


def test_undo_and_retry(nano_q4: Path, asked: list[Turns], capsys: Out) -> None:
    hot = ("-n", "3", "--temperature", "5", "--threads", "1")
    assert talk(nano_q4, "/undo", "/retry", "A", "B", "/retry", "/undo", "C", options=hot) == 0
    notes = capsys.readouterr().err
    assert "nothing to take back" in notes
    assert "nothing to answer" in notes
    first, second, again, last = asked
    assert first == [("user", "A")]
    assert [second[0], second[2]] == [("user", "A"), ("user", "B")]
    assert second[1][0] == "assistant"
    assert again == second
    assert last == [*second[:2], ("user", "C")]


def test_save_and_load(nano_q4: Path, tmp_path: Path, asked: list[Turns], capsys: Out) -> None:
    path = tmp_path / "a talk.json"
    assert talk(nano_q4, "/system Sé.", "A", f"/save {path}", "B", f"/save {path}") == 0
    saved = json.loads(path.read_text("utf-8"))
    assert [turn["role"] for turn in saved] == ["system", *["user", "assistant"] * 2]
    assert saved[0]["content"] == "Sé."
    assert talk(nano_q4, f"/load {path}", "C", f"/save {path}") == 0
    turns = [(turn["role"], turn["content"]) for turn in saved]
    assert asked[-1] == [*turns, ("user", "C")]
    capsys.readouterr()
    assert talk(nano_q4, f"/save {path}") == 8
    assert "File exists" in capsys.readouterr().err
    assert len(json.loads(path.read_text("utf-8"))) == 7


def test_calls_are_saved(tmp_path: Path) -> None:
    """What an answer asks for is JSON too, and goes on where it was."""
    from phiggml.cli_conversation import _message

    call = pg.ToolCall("now", {"zone": "é"})
    turn = _message([pg.Chunk("", None, "tool_calls", kind="tool_call", tool_calls=(call,))])
    assert json.loads(json.dumps(turn))["tool_calls"][0]["function"]["name"] == "now"


def test_what_cannot_be_loaded(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "talk.json"
    for content in (
        "", "{}", "[]", "[1]", '[{"role": "user"}]', '[{"content": "a"}]', "[" * 100_000,
        '[{"role": "user", "content": "\\ud800"}]', '[{"role": "user", "content": 5}]',
        '[{"role": "system", "content": null, "tool_calls": [5]}]',
    ):  # fmt: skip
        path.write_text(content, "utf-8")
        assert talk(nano_q4, f"/load {path}") == 3
        complaint(capsys)
    for typed in ("/load", "/save", "/load a\0b"):
        assert talk(nano_q4, typed) == 3
        assert "it needs a file" in complaint(capsys)
    assert talk(nano_q4, "/load ~nobody-of-that-name/a") == 8


def test_settings_that_are_none(nano_q4: Path, capsys: Out) -> None:
    for setting in (
        "temperature x", "temperature -1", "top_k 1.5", "seed -1", "max_tokens 0", "nonsense 1",
        "nonsense", "logit_bias 5", "logit_bias 999999=1", "dry_sequence_breakers {",
    ):  # fmt: skip
        assert talk(nano_q4, f"/set {setting}") == 3
        complaint(capsys)


def test_tokens_are_counted(nano_q4: Path, asked: list[Turns], capsys: Out) -> None:
    assert talk(nano_q4, "/tokens", "A", "/tokens") == 0
    none, some = capsys.readouterr().err.splitlines()
    assert none == "The conversation takes 0 of 4096 tokens of context."
    with pg.Model(nano_q4) as model:
        prompt = model.chat_prompt([{"role": "user", "content": "A"}])
        n_asked = len(model.tokenize(prompt, parse_special=True))
    assert n_asked + 3 <= int(some.split()[3]) <= n_asked + 8  # and what ends the answer's turn


def test_history_is_kept_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = cli_keyboard.history_file()
    assert path == tmp_path / "phiggml" / "chat_history"
    for line in ("first", "second"):
        with cli_keyboard.kept_history(path):
            readline.add_history(line)
    assert path.read_text("utf-8").split()[-2:] == ["first", "second"]
    assert path.stat().st_mode & 0o077 == 0
    with cli_keyboard.kept_history(None):
        readline.add_history("third")
    assert "third" not in path.read_text("utf-8")
    readline.clear_history()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert cli_keyboard.history_file().is_absolute()


class _Typist:
    """A process on a terminal of its own."""

    # Between the pipes and that terminal; a fork in this process would copy its threads' locks.
    _GO_BETWEEN = (
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    )

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "phiggml", *map(str, arguments)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._GO_BETWEEN, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": ""},
        )
        self.shown = ""
        self._seen = 0

    def see(self, text: str, *, after: str = "") -> None:
        """Types, and waits until something is shown that was not seen before.

        A key that Python's readline misses, while it turns to the terminal, is pressed again.
        """
        assert self._process.stdout is not None
        end = time.monotonic() + 30
        self.type(after)
        while (found := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < end, self.shown
            if select.select([self._process.stdout], [], [], 1)[0]:
                self.shown += os.read(self._process.stdout.fileno(), 4096).decode(errors="replace")
            elif not after.isprintable() and len(after) == 1:
                self.type(after)
        self._seen = found + len(text)

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def left(self) -> int | None:
        """Its exit code, once Ctrl-D is pressed; one that stays is killed."""
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self.type("\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._process.poll()
        self._process.kill()
        self._process.communicate()
        return code


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_at_a_terminal(nano_q4: Path) -> None:
    with pg.Model(nano_q4) as model:
        core = model._open()
        ends = [i for i in range(model.n_vocab) if core.is_end_of_generation(i)]
    endless = ",".join(f"{token}=-inf" for token in ends)
    typist = _Typist("chat", nano_q4, *GREEDY, "--logit-bias", endless, "--n-ctx", "4096")
    typist.see("\x1b[2m")
    for typed, shown in (
        ("Tell\n", "size"),
        ("\x03", "stopped"),
        ("/tokens\n", "tokens of context"),
        ("a\\\n", "... "),
        ("\x03", "/exit leaves"),
    ):
        if typed != "\x03":
            typist.see("> ")
        typist.see(shown, after=typed)
    assert " 0 of 4096" not in typist.shown  # what was said is kept
    assert typist.left() == 0
