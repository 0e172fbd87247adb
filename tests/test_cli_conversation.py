"""The commands of phiggml chat, and messages of several lines."""

from __future__ import annotations

import io
import json
import os
import select
import signal
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


def test_messages_of_several_lines(
    nano_q4: Path, asked: list[Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(sys, "stdin", io.StringIO('"""a\n'))
    assert phiggml("chat", nano_q4) == 3
    assert asked == []


def test_undo_and_retry(nano_q4: Path, asked: list[Turns], capsys: Out) -> None:
    hot = ("-n", "3", "--temperature", "5", "--threads", "1")
    assert talk(nano_q4, "/undo", "/retry", "A", "B", "/retry", "/undo", "C", options=hot) == 0
    notes = capsys.readouterr().err
    assert "nothing to take back" in notes
    assert "nothing to answer" in notes
    first, second, again, last = asked
    assert second[:-1] == [("user", "A"), first and second[1]]
    assert second[-1] == ("user", "B")
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
    assert talk(nano_q4, "/load") == 3
    assert "it needs a file" in complaint(capsys)


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

    def __init__(self, *arguments: str | Path) -> None:
        import pty

        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.environ.update(TERM="xterm", NO_COLOR="")
            os.execv(sys.executable, [sys.executable, "-m", "phiggml", *map(str, arguments)])
        self.shown = ""

    def type(self, text: str, until: str) -> None:
        """Types, and waits for what is then shown."""
        start = len(self.shown)
        os.write(self._terminal, text.encode())
        end = time.monotonic() + 30
        while until not in self.shown[start:]:
            assert time.monotonic() < end, self.shown
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.shown += os.read(self._terminal, 4096).decode(errors="replace")

    def left(self) -> int:
        """Its exit code; one that stays is killed."""
        os.write(self._terminal, b"\x04")
        for _ in range(300):
            ended, status = os.waitpid(self._child, os.WNOHANG)
            if ended:
                os.close(self._terminal)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
            if select.select([self._terminal], [], [], 0)[0]:
                with pytest.MonkeyPatch.context():
                    try:
                        os.read(self._terminal, 4096)
                    except OSError:
                        continue
        os.kill(self._child, signal.SIGKILL)
        raise AssertionError("it stays")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_at_a_terminal(nano_q4: Path) -> None:
    with pg.Model(nano_q4) as model:
        core = model._open()
        ends = [i for i in range(model.n_vocab) if core.is_end_of_generation(i)]
    endless = ",".join(f"{token}=-inf" for token in ends)
    typist = _Typist("chat", nano_q4, *GREEDY, "--logit-bias", endless, "--n-ctx", "4096")
    typist.type("", "\x1b[2m")
    typist.type("", "> ")
    typist.type("Tell\n", "size")
    typist.type("\x03", "stopped")
    typist.type("", "> ")
    typist.type("/tokens\n", "tokens of context")
    assert " 0 of 4096" not in typist.shown  # what was said is kept
    typist.type("", "> ")
    typist.type("a\\\n", "... ")
    typist.type("\x03", "/exit leaves")
    typist.type("", "> ")
    assert typist.left() == 0
