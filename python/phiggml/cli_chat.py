"""phiggml chat: a conversation."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from phiggml.cli_answer import AnswerOptions, add_answer_arguments, open_draft
from phiggml.cli_conversation import Conversation
from phiggml.cli_keyboard import history_file, kept_history, piped_messages, typed_messages
from phiggml.cli_sampling import add_sampling_arguments
from phiggml.cli_session import add_session_arguments, open_session
from phiggml.cli_terminal import note

__all__ = ["add_chat"]


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml chat`."""
    parser.add_argument(
        "model", metavar="MODEL.gguf", help="a GGUF model, or the first part of a split one"
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help="keep what is typed for the next time, in phiggml/chat_history in $XDG_STATE_HOME "
        "(~/.local/state); else it is forgotten",
    )
    add_answer_arguments(parser)
    add_session_arguments(parser)
    add_sampling_arguments(parser)
    parser.usage = "%(prog)s [OPTIONS] MODEL.gguf"
    parser.epilog = "Once it runs, /help lists its commands. Messages may also come from a pipe."
    parser.set_defaults(verb=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    options = AnswerOptions.of(arguments)
    with ExitStack() as resources:
        if interactive:
            resources.enter_context(kept_history(history_file() if arguments.history else None))
        session = open_session(arguments, resources)
        conversation = Conversation(
            session,
            options,
            system=arguments.system,
            draft=open_draft(arguments, resources),
            interactive=interactive,
        )
        if interactive:
            note(f"{arguments.model}, {session.n_ctx} tokens of context. /help tells the rest.")
        for message in typed_messages() if interactive else piped_messages():
            if not conversation.take(message):
                break
    return 0
