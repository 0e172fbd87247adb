"""Messages as they are typed: lines, several lines together, and the history of them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import phiggml as pg
from phiggml.cli_terminal import note, say

__all__ = ["history_file", "kept_history", "piped_messages", "typed_messages"]

_QUOTES = '"""'
_MOST_LINES_OF_HISTORY = 1000


def typed_messages() -> Iterator[str]:
    """What is typed at a terminal, until Ctrl-D; Ctrl-C forgets what has been begun."""
    while True:
        try:
            message = _message(lambda begun: input("... " if begun else "> "))
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say()
            note("Ctrl-D or /exit leaves.")
        else:
            yield message


def piped_messages() -> Iterator[str]:
    """What comes through stdin when nobody types.

    Raises:
        InputError: the end comes in the middle of a message.
    """

    def read(begun: bool) -> str:
        line = sys.stdin.readline()
        if not line:
            if begun:
                raise pg.InputError(
                    f"chat: the last message has no end: after a backslash, or until {_QUOTES}, "
                    "more must come."
                )
            raise EOFError
        return line.rstrip("\n")

    with contextlib.suppress(EOFError):
        while True:
            yield _message(read)


def _message(read: Callable[[bool], str]) -> str:
    """One message: a line, those that a backslash joins, or what three quotes enclose."""
    lines = [read(False)]
    quoted = re.fullmatch(rf"((?:/\w+ +)?){_QUOTES}(.*)", lines[0])
    if quoted is None:
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read(True))
        return "\n".join(lines)
    command, lines[0] = quoted.groups()
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(read(True))
    text = "\n".join(lines).rstrip().removesuffix(_QUOTES).strip("\n")
    # In quotes nothing is a command.
    return f"{command}{text}" if command or not text.startswith("/") else f" {text}"


def history_file() -> Path:
    """Where lines are kept, if that is asked for: in the folder for what programs remember.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not folder.is_absolute():
        try:
            folder = Path("~/.local/state").expanduser()
        except RuntimeError:
            raise pg.InputError(
                "chat: --history: you have no home folder here. Set XDG_STATE_HOME."
            ) from None
    return folder / "phiggml" / "chat_history"


@contextlib.contextmanager
def kept_history(path: Path | None) -> Iterator[None]:
    """Lines can be edited and called back with the arrow keys; a file keeps them, if one is given.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        import readline
    except ImportError:
        if path is not None:
            note("This Python has no readline: lines are not kept.")
        yield
        return
    readline.set_auto_history(True)
    if path is None:
        yield
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Nobody else is to read what was said.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    readline.clear_history()
    readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(_MOST_LINES_OF_HISTORY)
        readline.write_history_file(path)
