"""phiggml chat: a conversation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import phiggml as pg
from phiggml.cli_run import (
    add_chat_arguments,
    add_model_arguments,
    open_session,
    read_tools,
    room_for_answer,
    sampling_of,
    speeds,
    write_answer,
)
from phiggml.cli_terminal import note, printable, say

__all__ = ["add_chat"]

_HELP = """\
/help         this
/reset        forget the conversation
/system TEXT  tell the model who it is; without TEXT, tell it nothing
/result TEXT  what a call gave that the model asked for
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / takes a space before it."""


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml chat`."""
    parser.add_argument(
        "model", metavar="MODEL.gguf", help="a GGUF model, or the first part of a split one"
    )
    add_model_arguments(parser)
    add_chat_arguments(parser)
    parser.set_defaults(verb=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    sampling = sampling_of(arguments)
    tools = read_tools(arguments.tools)
    with ExitStack() as resources:
        session = open_session(arguments, resources)
        # A model without a template, or a place for tools, is found now, not after a question.
        session.model.chat_prompt([{"role": "user", "content": "Hello"}], tools=tools)
        if interactive:
            note(f"{arguments.model}, {session.n_ctx} tokens of context. /help tells the rest.")
        chat = _Conversation(
            session,
            sampling,
            max_tokens=arguments.max_tokens,
            interactive=interactive,
            system=arguments.system,
            tools=tools,
        )
        for line in _typed_lines() if interactive else sys.stdin:
            if not chat.take(line.rstrip("\n")):
                break
    return 0


def _typed_lines() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines with it)
    while True:
        try:
            yield input("> ")
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say()
            note("Ctrl-D or /quit leaves.")


class _Conversation:
    """What was said so far, and the session that answers."""

    def __init__(
        self,
        session: pg.Session,
        sampling: pg.Sampling,
        *,
        max_tokens: int | None,
        interactive: bool,
        system: str | None = None,
        tools: list[Any] | None = None,
    ) -> None:
        self._session = session
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._interactive = interactive
        self._system = system
        self._tools = tools
        self._turns: list[dict[str, Any]] = []

    def take(self, line: str) -> bool:
        """Does what a line asks for; False when that is to leave."""
        if line.startswith("/"):
            return self._obey(line)
        if line.strip():
            self._answer({"role": "user", "content": line})
        return True

    def _obey(self, line: str) -> bool:
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            note(_HELP)
        elif command == "/reset":
            self._turns.clear()
            note("The conversation is forgotten.")
        elif command == "/system":
            self._system = rest.strip() or None
            note("The model is told that." if self._system else "The model is told nothing.")
        elif command == "/result":
            self._answer({"role": "tool", "content": rest.strip()})
        else:
            note(f"There is no command {printable(command)}. /help lists them.")
        return True

    def _answer(self, turn: dict[str, Any]) -> None:
        self._turns.append(turn)
        written: list[pg.Chunk] = []
        try:
            write_answer(self._chunks(), written)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            if not written:
                self._turns.pop()
                say()
            note("stopped")
            if not written:
                return
        except pg.PhiggmlError as error:
            self._turns.pop()
            if not self._interactive:
                raise
            note(f"phiggml: {error}")
            if isinstance(error, pg.SessionError):
                note("/reset makes room.")
            return
        if self._interactive and written and written[-1].timings is not None:
            note(speeds(written[-1]))
        self._turns.append(_message(written))

    def _chunks(self) -> Iterator[pg.Chunk]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        messages = [*system, *self._turns]
        prompt = self._session.model.chat_prompt(messages, tools=self._tools)
        max_tokens = room_for_answer(self._session, prompt)
        if self._max_tokens is not None:
            max_tokens = min(max_tokens, self._max_tokens)
        return self._session.stream_chat(
            messages, tools=self._tools, max_tokens=max_tokens, sampling=self._sampling
        )


def _message(written: list[pg.Chunk]) -> dict[str, Any]:
    """What was written of an answer, as a turn: without the reasoning, which no template wants."""
    calls = [call for chunk in written for call in chunk.tool_calls]
    content = "".join(chunk.text for chunk in written if chunk.kind == "text")
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
