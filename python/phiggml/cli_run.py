"""phiggml run: a prompt and its answer."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import phiggml as pg
from phiggml.cli_answer import (
    AnswerOptions,
    add_answer_arguments,
    open_draft,
    speeds,
    write_answer,
)
from phiggml.cli_sampling import add_sampling_arguments
from phiggml.cli_session import add_session_arguments, open_session
from phiggml.cli_terminal import note, say_json

__all__ = ["add_run"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml run`."""
    add = parser.add_argument
    add("model", metavar="MODEL.gguf", help="a GGUF model, or the first part of a split one")
    add("-p", "--prompt", required=True, help="what to ask; - reads it from standard input")
    add("--raw", action="store_true", help="the prompt as it is, without the model's chat template")
    add("--json", action="store_true", help="answer and speeds as JSON, at the end")
    add(
        "--logprobs",
        type=int,
        metavar="K",
        help="with --json: how likely each token was, and the K likeliest in its place",
    )
    add_answer_arguments(parser)
    add_session_arguments(parser)
    add_sampling_arguments(parser)
    parser.usage = "%(prog)s [OPTIONS] -p PROMPT MODEL.gguf"
    parser.set_defaults(verb=_run)


def _run(arguments: argparse.Namespace) -> int:
    options = AnswerOptions.of(arguments)
    if arguments.logprobs is not None and not arguments.json:
        raise pg.InputError("run: --logprobs is shown in JSON alone. Add --json.")
    text = sys.stdin.read().rstrip("\n") if arguments.prompt == "-" else arguments.prompt
    with ExitStack() as resources:
        session = open_session(arguments, resources)
        draft = open_draft(arguments, resources)
        prompt, chunks = _asked(arguments, session, text, options=options, draft=draft)
        if arguments.json:
            try:
                answer = pg.Completion.read(chunks)
            except pg.SessionError as error:
                if error.completion is not None:
                    say_json(_document(arguments.model, prompt, error.completion, session.model))
                raise
            say_json(_document(arguments.model, prompt, answer, session.model))
            return 0
        written: list[pg.Chunk] = []
        write_answer(chunks, written)
        note(speeds(written[-1]))
    return 0


def _asked(
    arguments: argparse.Namespace,
    session: pg.Session,
    text: str,
    *,
    options: AnswerOptions,
    draft: pg.Draft | pg.PromptLookup | None,
) -> tuple[str, Iterator[pg.Chunk]]:
    """The prompt that the text becomes, and its answer to come."""
    has_template = isinstance(session.model.metadata.get("tokenizer.chat_template"), str)
    as_chat = has_template and not arguments.raw
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    if not as_chat and (options.tools is not None or arguments.system is not None):
        raise pg.InputError("run: --tools and --system need the model's chat template.")
    prompt = session.model.chat_prompt(messages, tools=options.tools) if as_chat else text
    how: dict[str, Any] = {
        "max_tokens": options.most_tokens(session, prompt),
        "sampling": options.sampling,
        "stop": options.stop,
        "grammar": options.grammar,
        "logprobs": arguments.logprobs,
        "draft": draft,
    }
    if as_chat:
        return prompt, session.stream_chat(messages, tools=options.tools, **how)
    return prompt, session.stream(prompt, **how)


def _document(model_path: str, prompt: str, answer: pg.Completion, model: pg.Model) -> Any:
    document = {
        "model": model_path,
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
    if answer.logprobs is not None:
        document["logprobs"] = [
            {
                **_likelihood(model, found.token, found.logprob),
                "top": [_likelihood(model, token, logprob) for token, logprob in found.top],
            }
            for found in answer.logprobs
        ]
    return document


def _likelihood(model: pg.Model, token: int, logprob: float) -> dict[str, Any]:
    """A token's; null stands for the logarithm of nothing, which JSON cannot say."""
    return {
        "token": token,
        "text": model._open().piece(token, True).decode(errors="replace"),
        "logprob": logprob if math.isfinite(logprob) else None,
    }
