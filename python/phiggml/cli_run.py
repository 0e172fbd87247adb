"""phiggml run: a prompt and its answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.chat_tools import ToolCall
from phiggml.cli_terminal import ProgressBar, murmur, note, pour, say_json
from phiggml.placement_settings import DEFAULT_CONTEXT

__all__ = [
    "add_chat_arguments",
    "add_model_arguments",
    "add_run",
    "layers_on_gpus",
    "open_session",
    "read_tools",
    "room_for_answer",
    "sampling_of",
    "speeds",
    "write_answer",
]

# Fields of Sampling that have an option here; types and defaults are those of the class.
_SAMPLING = {
    "temperature": ("T", "0 always takes the likeliest token"),
    "top_k": ("K", "keep the likeliest K tokens; 0 keeps all"),
    "top_p": ("P", "keep the likeliest tokens that have this probability together"),
    "min_p": ("P", "keep tokens at least this likely relative to the likeliest"),
    "repeat_penalty": ("X", "divides the logits of recent tokens"),
}


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml run`."""
    parser.add_argument(
        "model", metavar="MODEL.gguf", help="a GGUF model, or the first part of a split one"
    )
    parser.add_argument(
        "-p", "--prompt", required=True, help="what to ask; - reads it from standard input"
    )
    add_model_arguments(parser)
    add_chat_arguments(parser)
    parser.add_argument(
        "--raw", action="store_true", help="the prompt as it is, without the model's chat template"
    )
    parser.add_argument("--json", action="store_true", help="answer and speeds as JSON, at the end")
    parser.set_defaults(verb=_run)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `run` and `chat` have in common."""
    add = parser.add_argument
    add(
        "-n",
        "--max-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer (default: until it ends, or the context is full)",
    )
    add(
        "--n-gpu-layers",
        type=layers_on_gpus,
        default="auto",
        metavar="N",
        help="layers to hold on GPUs: a number, all, or auto: as many as fit (default %(default)s)",
    )
    add(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of context (default: the model's own, at most {DEFAULT_CONTEXT})",
    )
    add("--threads", type=int, metavar="N", help="default: all cores; one for a small model")
    add("--seed", type=int, metavar="S", help="makes the answer repeatable")
    for name, (metavar, meaning) in _SAMPLING.items():
        default = getattr(pg.Sampling(), name)
        add(
            "--" + name.replace("_", "-"),
            type=type(default),
            metavar=metavar,
            help=f"{meaning} (default {default})",
        )


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `run` and `chat` tell the model besides the question."""
    parser.add_argument("--system", metavar="TEXT", help="tell the model who it is")
    parser.add_argument(
        "--tools",
        metavar="FILE.json",
        help="functions that the model may ask to have called: a list of JSON schemas",
    )


def read_tools(path: str | None) -> list[Any] | None:
    """The tools of a JSON file."""
    if path is None:
        return None
    try:
        tools = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise pg.InputError(f"chat: {path}: is no JSON: {fault}") from None
    if not isinstance(tools, list):
        raise pg.InputError(f"chat: {path}: must be a list of JSON schemas of functions.")
    return tools


def open_session(arguments: argparse.Namespace, resources: ExitStack) -> pg.Session:
    """Loads the model, with a bar, and makes a session; `resources` closes both."""
    with ProgressBar() as bar:
        model = resources.enter_context(
            pg.Model(
                arguments.model,
                n_gpu_layers=arguments.n_gpu_layers,
                session=pg.SessionSettings(n_ctx=arguments.n_ctx),
                progress=bar,
            )
        )
    return resources.enter_context(
        pg.Session(model, n_ctx=arguments.n_ctx, threads=arguments.threads)
    )


def sampling_of(arguments: argparse.Namespace) -> pg.Sampling:
    """Sampling() with what the command line says otherwise."""
    given = {name: getattr(arguments, name) for name in (*_SAMPLING, "seed")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(pg.Sampling(), **changes)


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
    cut = ", cut off there" if last.finish_reason == "length" else ""
    return (
        f"{timings.prompt_tokens} tokens read at {timings.prompt_tokens_per_second:.1f} tokens/s, "
        f"{timings.tokens} written at {timings.tokens_per_second:.1f} tokens/s{cut}"
    )


def layers_on_gpus(text: str) -> int | str:
    """What --n-gpu-layers takes."""
    if text in ("auto", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor all or auto") from None


def _run(arguments: argparse.Namespace) -> int:
    sampling = sampling_of(arguments)
    text = sys.stdin.read().rstrip("\n") if arguments.prompt == "-" else arguments.prompt
    tools = read_tools(arguments.tools)
    with ExitStack() as resources:
        session = open_session(arguments, resources)
        has_template = isinstance(session.model.metadata.get("tokenizer.chat_template"), str)
        if has_template and not arguments.raw:
            messages = [{"role": "user", "content": text}]
            if arguments.system is not None:
                messages.insert(0, {"role": "system", "content": arguments.system})
            prompt = session.model.chat_prompt(messages, tools=tools)
            max_tokens = _most_tokens(arguments, session, prompt)
            chunks = session.stream_chat(
                messages, tools=tools, max_tokens=max_tokens, sampling=sampling
            )
        else:
            if tools is not None or arguments.system is not None:
                raise pg.InputError("run: --tools and --system need the model's chat template.")
            prompt = text
            max_tokens = _most_tokens(arguments, session, prompt)
            chunks = session.stream(prompt, max_tokens=max_tokens, sampling=sampling)
        if arguments.json:
            say_json(_document(arguments.model, prompt, pg.Completion.of(list(chunks))))
            return 0
        written: list[pg.Chunk] = []
        write_answer(chunks, written)
        note(speeds(written[-1]))
    return 0


def _most_tokens(arguments: argparse.Namespace, session: pg.Session, prompt: str) -> int:
    if arguments.max_tokens is None:
        return room_for_answer(session, prompt)
    return int(arguments.max_tokens)


def _document(model: str, prompt: str, answer: pg.Completion) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": [call.as_message() for call in answer.tool_calls],
        "malformed_call": answer.malformed_call,
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "timings": {
            **dataclasses.asdict(answer.timings),
            "prompt_tokens_per_second": answer.timings.prompt_tokens_per_second,
            "tokens_per_second": answer.timings.tokens_per_second,
        },
    }
