"""What a session writes: chunks of text while it grows, and the whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phiggml.chat_tools import ToolCall
from phiggml.errors import SessionError

__all__ = ["Chunk", "Completion", "Timings", "TokenLogprobs"]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
ChunkKind = Literal["text", "reasoning", "tool_call"]


@dataclass(frozen=True)
class Timings:
    """Tokens and seconds of an answer.

    Attributes:
        prompt_tokens: tokens of the prompt.
        prompt_seconds: how long it took to read them: the time to the first token.
        tokens: tokens that were written, the one that ended the answer not counted.
        seconds: how long that took.
        reused_tokens: those of the prompt that were in the context and were not read again.
        guessed_tokens: what a draft or a prompt lookup has guessed; 0 without one.
        accepted_tokens: how many of those were right.
    """

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    reused_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading what was not reused; 0 when nothing was timed."""
        read = self.prompt_tokens - self.reused_tokens
        return read / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of writing; 0 when nothing was timed."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, by the model's own logits, before any setting of Sampling.

    Attributes:
        token: its id.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens in its place, likeliest first: (id, logprob).
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: whole characters; may be empty while a character, a stop text or a marker is not
            complete.
        token: the id behind it; None for the end, and for all but the last of several chunks that
            one token gave.
        finish_reason: "stop" (the model ended, or a stop text came), "tool_calls" (it ended, and
            asks for calls), "length" (max_tokens are written), "cancelled" (by
            `Session.cancel`), None before the end.
        timings: of the whole answer, at its end; also where that is a SessionError, which comes
            next.
        kind: the part of the answer that it belongs to: "text", "reasoning", or "tool_call". Only
            chats tell parts apart.
        tool_calls: what a chunk of kind "tool_call" asks for; it has all of its call, or none.
        malformed_call: the text begins as a tool call does, and is none.
        logprobs: of the token, where they were asked for.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    kind: ChunkKind = "text"
    tool_calls: tuple[ToolCall, ...] = ()
    malformed_call: bool = False
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes:
        text: the answer, without what a chat tells apart from it: reasoning and tool calls.
        tokens: its token ids, all of them.
        finish_reason: "stop" (the model ended, or a stop text came), "tool_calls" (it ended, and
            asks for calls), "length", "cancelled", or, in a SessionError, "failed".
        timings: how long it took.
        reasoning: what the model thought before it answered; None when it did not.
        tool_calls: what it asks to have called, in its order.
        malformed_call: the text holds what begins as a tool call does, and is none.
        logprobs: of each token, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | Literal["failed"]
    timings: Timings
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    malformed_call: bool = False
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Completion:
        """Joins the chunks of one answer, the last of which has its timings."""
        last = chunks[-1]
        assert last.timings is not None
        logprobs = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
        thoughts = [chunk.text for chunk in chunks if chunk.kind == "reasoning"]
        return cls(
            text="".join(chunk.text for chunk in chunks if chunk.kind == "text"),
            tokens=tuple(chunk.token for chunk in chunks if chunk.token is not None),
            finish_reason=last.finish_reason or "failed",
            timings=last.timings,
            reasoning="".join(thoughts) if thoughts else None,
            tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
            malformed_call=any(chunk.malformed_call for chunk in chunks),
            logprobs=tuple(logprobs) if logprobs else None,
        )

    @classmethod
    def read(cls, chunks: Iterable[Chunk]) -> Completion:
        """Reads a stream to its end.

        Args:
            chunks: what `Session.stream` gives, or `stream_chat`.

        Raises:
            SessionError: as the stream does; its `completion` is what it had given by then.
        """
        given: list[Chunk] = []
        try:
            for chunk in chunks:
                given.append(chunk)
        except SessionError as error:
            if given and given[-1].timings is not None:
                error.completion = cls.of(given)
            raise
        return cls.of(given)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to go on with: content and tool_calls, without reasoning."""
        calls = {"tool_calls": [call.as_message() for call in self.tool_calls]}
        return {
            "role": "assistant",
            "content": self.text,
            **(calls if self.tool_calls else {}),
        }


class Timer:
    """Measures an answer.

    Attributes:
        guessed_tokens, accepted_tokens: as in Timings; whoever makes and checks guesses counts.
    """

    def __init__(self, prompt_tokens: int, reused_tokens: int = 0) -> None:
        self._prompt_tokens = prompt_tokens
        self._reused_tokens = reused_tokens
        self.guessed_tokens = 0
        self.accepted_tokens = 0
        self._start = time.perf_counter()
        self._prompt_seconds = 0.0

    def prompt_done(self) -> None:
        """The prompt is read; writing begins."""
        now = time.perf_counter()
        self._prompt_seconds = now - self._start
        self._start = now

    def timings(self, tokens: int) -> Timings:
        """The figures so far."""
        return Timings(
            self._prompt_tokens,
            self._prompt_seconds,
            tokens,
            time.perf_counter() - self._start,
            self._reused_tokens,
            self.guessed_tokens,
            self.accepted_tokens,
        )
