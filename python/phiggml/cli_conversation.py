"""A conversation at the command line: what was said, and the commands that change it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.atomic_file import AtomicFile, naming_target, require_writable_name
from phiggml.cli_answer import AnswerOptions, read_json, speeds, write_answer
from phiggml.cli_sampling import parse_setting, setting_text
from phiggml.cli_terminal import note, printable, say

__all__ = ["Conversation"]

_HELP = """\
/help            this
/reset           forget the conversation
/undo            take back the last message and its answer
/retry           answer the last message again
/system TEXT     tell the model who it is; without TEXT, tell it nothing
/result TEXT     what a call gave that the model asked for
/set NAME VALUE  how tokens are chosen, such as temperature 0; without, show it
/tokens          how much of the context the conversation takes
/save FILE       write the conversation as JSON
/load FILE       go on with one that was saved
/exit            leave, as Ctrl-D does
A backslash at its end continues a line; three quotes, \"\"\", enclose many.
A message that begins with / takes a space before it. Ctrl-C stops an answer."""


class Conversation:
    """What was said so far, and the session that answers."""

    def __init__(
        self,
        session: pg.Session,
        options: AnswerOptions,
        *,
        system: str | None = None,
        draft: pg.Draft | pg.PromptLookup | None = None,
        interactive: bool,
    ) -> None:
        self._session = session
        self._options = options
        self._system = system
        self._draft = draft
        self._interactive = interactive
        self._turns: list[dict[str, Any]] = []
        self._own_files: set[Path] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(_HELP),
            "/reset": self._reset,
            "/undo": self._undo,
            "/retry": self._retry,
            "/system": self._tell_system,
            "/result": lambda text: self._answer([*self._turns, _turn("tool", text)]),
            "/set": self._set,
            "/tokens": self._tell_tokens,
            "/save": self._save,
            "/load": self._load,
        }
        # A model without a template, or a place for tools, and a setting or a draft that do not
        # fit are found now, not after a question.
        self._chunks([_turn("user", "Hello")], options)

    def take(self, message: str) -> bool:
        """Does what a message asks for; False when that is to leave."""
        try:
            return self._taken(message)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            say()
            note("stopped")
            return True
        except (pg.PhiggmlError, OSError) as error:
            if not self._interactive:
                raise
            note(f"phiggml: {_sentence(error)}")
            return True

    def _taken(self, message: str) -> bool:
        if not message.startswith("/"):
            if message.strip():
                self._answer([*self._turns, _turn("user", message)])
            return True
        command, _, rest = message.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command in self._commands:
            self._commands[command](rest.strip())
        else:
            note(f"There is no command {printable(command)}. /help lists them.")
        return True

    def _reset(self, _text: str) -> None:
        self._turns.clear()
        note("The conversation is forgotten.")

    def _undo(self, _text: str) -> None:
        if self._last_question() is None:
            note("There is nothing to take back.")
            return
        del self._turns[self._last_question() :]
        note("The last message is taken back, and its answer.")

    def _retry(self, _text: str) -> None:
        asked = self._last_question()
        if asked is None:
            note("There is nothing to answer.")
        else:
            self._answer(self._turns[: asked + 1])

    def _last_question(self) -> int | None:
        asked = [i for i, turn in enumerate(self._turns) if turn["role"] in ("user", "tool")]
        return asked[-1] if asked else None

    def _tell_system(self, text: str) -> None:
        self._system = text or None
        note("The model is told that." if text else "The model is told nothing.")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if not value:
            self._tell_settings(name)
            return
        if name == "max_tokens":
            options = dataclasses.replace(self._options, max_tokens=_most_tokens(value))
        else:
            changed: dict[str, Any] = {name: parse_setting(name, value)}
            sampling = dataclasses.replace(self._options.sampling, **changed)
            options = dataclasses.replace(self._options, sampling=sampling)
        self._chunks([_turn("user", "Hello")], options)
        self._options = options

    def _tell_settings(self, name: str) -> None:
        settings = {"max_tokens": self._options.max_tokens}
        settings |= {
            field.name: getattr(self._options.sampling, field.name)
            for field in dataclasses.fields(pg.Sampling)
        }
        if name and name not in settings:
            raise pg.InputError(f"set: there is no setting {name!r}. /set lists them.")
        for shown in [name] if name else settings:
            note(f"{shown:<21}  {setting_text(shown, settings[shown])}")

    def _tell_tokens(self, _text: str) -> None:
        n_used = self._n_tokens(self._messages(self._turns)) if self._turns else 0
        note(f"The conversation takes {n_used} of {self._session.n_ctx} tokens of context.")

    def _save(self, text: str) -> None:
        path = _path(text, "/save")
        overwrite = path.resolve() in self._own_files
        require_writable_name(path, overwrite=overwrite)
        document = json.dumps(self._messages(self._turns), ensure_ascii=False, indent=2)
        with naming_target(str(path)):
            file = AtomicFile(path.parent)
            try:
                file.write(f"{document}\n".encode(errors="backslashreplace"))
                file.publish(path, overwrite=overwrite)
            finally:
                file.discard()
        self._own_files.add(path.resolve())
        note(f"{len(self._turns)} messages are in {path}.")

    def _load(self, text: str) -> None:
        path = _path(text, "/load")
        messages = read_json(str(path))
        if not isinstance(messages, list) or not messages:
            raise pg.InputError(f"load: {path}: it is no list of messages, as /save writes it.")
        self._n_tokens(messages)
        first = messages[0]
        told = first["role"] == "system" and isinstance(first.get("content"), str)
        self._system = first["content"] if told else None
        self._turns = messages[1:] if told else messages
        self._own_files.add(path.resolve())
        note(f"{len(self._turns)} messages are read. The conversation goes on.")

    def _answer(self, turns: list[dict[str, Any]]) -> None:
        """Answers the last of these turns, and makes them what was said."""
        self._require_room(turns)
        written: list[pg.Chunk] = []
        try:
            write_answer(self._chunks(turns, self._options), written)
        except KeyboardInterrupt:
            if not (self._interactive and written):
                raise
            note("stopped")
        except pg.SessionError:
            if written:
                self._turns = [*turns, _message(written)]
            raise
        self._turns = [*turns, _message(written)]
        if self._interactive and written[-1].timings is not None:
            note(speeds(written[-1]))
            if self._is_full(written[-1]):
                note("The context is full: /undo or /reset makes room.")

    def _require_room(self, turns: list[dict[str, Any]]) -> None:
        n_tokens, n_ctx = self._n_tokens(self._messages(turns)), self._session.n_ctx
        if n_tokens >= n_ctx and not self._options.shifts:
            raise pg.SessionError(
                f"chat: the conversation takes {n_tokens} tokens, and n_ctx = {n_ctx}: there is no "
                "room for an answer. Begin with a larger --n-ctx, or with --overflow shift."
            )

    def _is_full(self, last: pg.Chunk) -> bool:
        if last.timings is None or last.finish_reason != "length" or self._options.shifts:
            return False
        return last.timings.prompt_tokens + last.timings.tokens >= self._session.n_ctx

    def _chunks(self, turns: list[dict[str, Any]], options: AnswerOptions) -> Iterator[pg.Chunk]:
        """The answer to come; what it is asked for is checked by now."""
        messages = self._messages(turns)
        return self._session.stream_chat(
            messages,
            tools=options.tools,
            max_tokens=options.most_tokens(self._session, self._prompt(messages)),
            sampling=options.sampling,
            stop=options.stop,
            grammar=options.grammar,
            draft=self._draft,
        )

    def _messages(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return turns if self._system is None else [_turn("system", self._system), *turns]

    def _n_tokens(self, messages: list[dict[str, Any]]) -> int:
        return len(self._session.model.tokenize(self._prompt(messages), parse_special=True))

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        return self._session.model.chat_prompt(messages, tools=self._options.tools)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _message(written: list[pg.Chunk]) -> dict[str, Any]:
    """What was written of an answer, as a turn: without the reasoning, which no template wants."""
    calls = [call.as_message() for chunk in written for call in chunk.tool_calls]
    turn: dict[str, Any] = _turn("assistant", "".join(c.text for c in written if c.kind == "text"))
    return turn | ({"tool_calls": calls} if calls else {})


def _path(text: str, command: str) -> Path:
    if not text or "\0" in text:
        raise pg.InputError(f"{command[1:]}: it needs a file: {command} talk.json")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)


def _most_tokens(text: str) -> int | None:
    if text == "none":
        return None
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise pg.InputError(f"set: max_tokens: {text!r} is no whole number from 1, nor none.")
    return count


def _sentence(error: Exception) -> str:
    if isinstance(error, pg.SessionError):
        return f"{error} /undo or /reset makes room."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error)
