"""What a command line says about an answer, and the answer as a terminal shows it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.chat_tools import ToolCall
from phiggml.cli_sampling import sampling_of
from phiggml.cli_terminal import murmur, pour

__all__ = [
    "AnswerOptions",
    "add_answer_arguments",
    "open_draft",
    "read_json",
    "room_for_answer",
    "speeds",
    "write_answer",
]

# Where the context makes room for itself, an answer may be as long as it likes.
_NO_END = (1 << 31) - 1


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `run` and `chat` say about answers."""
    group = parser.add_argument_group("the answer")
    add = group.add_argument
    add(
        "-n",
        "--max-tokens",
        type=int,
        metavar="N",
        help="at most so many tokens (default: until it ends, or the context is full)",
    )
    add("--system", metavar="TEXT", help="tell the model who it is")
    add(
        "--tools",
        metavar="FILE.json",
        help="functions that the model may ask to have called: a list of JSON schemas",
    )
    add("--stop", action="append", metavar="TEXT", help="end before this; may be given again")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--json-schema", metavar="FILE|JSON", help="the answer is JSON that this schema allows"
    )
    form.add_argument("--grammar", metavar="FILE", help="the answer is what this GBNF allows")
    guess = group.add_mutually_exclusive_group()
    guess.add_argument(
        "--draft",
        metavar="MODEL.gguf",
        help="let a smaller model of the same vocabulary guess; the answer stays the same",
    )
    guess.add_argument(
        "--prompt-lookup", action="store_true", help="guess that the answer repeats what was said"
    )


@dataclass(frozen=True)
class AnswerOptions:
    """What an answer is to be, as far as it can be checked without the model."""

    sampling: pg.Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    grammar: pg.Grammar | None
    tools: list[Any] | None
    shifts: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> AnswerOptions:
        """From a command line.

        Raises:
            OSError: a file cannot be read.
            InputError, UnsupportedError: a value is wrong.
        """
        most = arguments.max_tokens
        if most is not None and most < 1:
            raise pg.InputError(f"generate: max_tokens is {most}: it must be an integer >= 1.")
        if arguments.draft is not None:
            Path(arguments.draft).stat()
        return cls(
            sampling_of(arguments),
            most,
            tuple(arguments.stop or ()),
            _grammar_of(arguments),
            _read_tools(arguments.tools),
            arguments.overflow == "shift",
        )

    def most_tokens(self, session: pg.Session, prompt: str) -> int:
        """How long an answer to this prompt may be."""
        if self.max_tokens is not None:
            return self.max_tokens
        return _NO_END if self.shifts else room_for_answer(session, prompt)


def open_draft(
    arguments: argparse.Namespace, resources: ExitStack
) -> pg.Draft | pg.PromptLookup | None:
    """What guesses, if anything does; `resources` closes it."""
    if arguments.prompt_lookup:
        return pg.PromptLookup()
    if arguments.draft is None:
        return None
    model = pg.Model(
        arguments.draft,
        n_gpu_layers=arguments.n_gpu_layers,
        devices=arguments.device,
        session=pg.SessionSettings(n_ctx=arguments.n_ctx),
    )
    resources.enter_context(model)
    return resources.enter_context(pg.Draft(model, threads=arguments.threads))


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        InputError: it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise pg.InputError(f"chat: {path}: is no JSON: {fault}") from None


def _read_tools(path: str | None) -> list[Any] | None:
    if path is None:
        return None
    tools = read_json(path)
    if not isinstance(tools, list):
        raise pg.InputError(f"chat: {path}: must be a list of JSON schemas of functions.")
    return tools


def _grammar_of(arguments: argparse.Namespace) -> pg.Grammar | None:
    schema = arguments.json_schema
    if schema is not None and (schema.lstrip()[:1] == "{" or schema.strip() in ("true", "false")):
        return pg.Grammar.from_json_schema(schema)
    path = arguments.grammar if schema is None else schema
    if path is None:
        return None
    try:
        text = Path(path).read_text("utf-8")
    except ValueError:
        raise pg.InputError(f"{path}: it is no text in UTF-8. Save it as such.") from None
    try:
        return pg.Grammar(text) if schema is None else pg.Grammar.from_json_schema(text)
    except (pg.InputError, pg.UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from None


def room_for_answer(session: pg.Session, prompt: str) -> int:
    """Tokens that fit into the context after the prompt; 1 when it is full, so that it is said."""
    return max(1, session.n_ctx - len(session.model.tokenize(prompt, parse_special=True)))


def write_answer(chunks: Iterator[pg.Chunk], written: list[pg.Chunk]) -> None:
    """Writes an answer while it grows, and puts its chunks into `written`; ends its line always.

    Reasoning goes to stderr: whoever reads the answer from a pipe has the answer alone.
    """
    thinks, open_line = False, False
    try:
        for chunk in chunks:
            written.append(chunk)
            if chunk.kind == "reasoning":
                murmur(chunk.text)
                thinks = True
                continue
            if thinks and (chunk.text or chunk.finish_reason):
                murmur("\n\n")
                thinks = False
            text = chunk.text
            if chunk.kind == "tool_call" and chunk.tool_calls:
                calls = "\n".join(map(_call_text, chunk.tool_calls))
                text = f"\n{calls}" if open_line else calls
            pour(text)
            open_line = open_line or bool(text)
    finally:
        if thinks:
            murmur("\n")
        if written:
            pour("\n")


def _call_text(call: ToolCall) -> str:
    return f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"


def speeds(last: pg.Chunk) -> str:
    """What the end of an answer says about it."""
    assert last.timings is not None
    timings = last.timings
    read = timings.prompt_tokens - timings.reused_tokens
    reused = f", {timings.reused_tokens} reused" if timings.reused_tokens else ""
    first = timings.prompt_seconds
    wait = f"{1000 * first:.0f} ms" if first < 1 else f"{first:.1f} s"
    cut = ", cut off there" if last.finish_reason == "length" else ""
    n_right, n_guessed = timings.accepted_tokens, timings.guessed_tokens
    guesses = f"; {n_right} of {n_guessed} guesses were right" if n_guessed else ""
    return (
        f"{read} tokens read at {timings.prompt_tokens_per_second:.1f}/s{reused}; "
        f"{timings.tokens} written at {timings.tokens_per_second:.1f}/s, "
        f"the first after {wait}{cut}{guesses}"
    )
