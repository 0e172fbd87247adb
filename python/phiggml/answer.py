"""Answers in the making: from logits to tokens to chunks of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.completion import Chunk, FinishReason, Timer, TokenLogprobs
from phiggml.errors import InputError
from phiggml.grammar import Grammar, chosen_grammar
from phiggml.model import Model
from phiggml.number import integer
from phiggml.prompt_lookup import PromptLookup
from phiggml.sampling import Sampling
from phiggml.speculation import Draft
from phiggml.text_stream import text_stream

__all__ = ["Answer", "AnswerSettings", "LogitsProcessor"]

LogitsProcessor = Callable[
    [npt.NDArray[np.int32], npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]
]
"""Tokens so far, int32[n], and logits of the next, float32[n_vocab] -> other logits."""

MOST_LOGPROBS = 1024


@dataclass(frozen=True)
class AnswerSettings:
    """What an answer is to be, checked."""

    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    grammar: Grammar | None = None
    logprobs: int | None = None
    logits_processor: LogitsProcessor | None = None
    draft: Draft | PromptLookup | None = None
    shown: frozenset[int] = frozenset()

    @classmethod
    def checked(
        cls,
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: str | Sequence[str],
        grammar: Grammar | str | None,
        json_schema: Mapping[str, Any] | str | bool | None,
        logprobs: int | None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> AnswerSettings:
        """From the arguments of `generate`.

        Raises:
            InputError, UnsupportedError: one of them is wrong.
        """
        n_most, n_likeliest = integer(max_tokens, 1), integer(logprobs, 0, MOST_LOGPROBS)
        if n_most is None:
            raise InputError(f"generate: max_tokens is {max_tokens!r}: it must be an integer >= 1.")
        if not isinstance(sampling, Sampling):
            raise InputError(f"generate: sampling is {sampling!r}: it must be a Sampling.")
        if logprobs is not None and n_likeliest is None:
            raise InputError(
                f"generate: logprobs is {logprobs!r}: it must be None or an integer from 0 to "
                f"{MOST_LOGPROBS}."
            )
        if logits_processor is not None and not callable(logits_processor):
            raise InputError(
                "generate: logits_processor cannot be called: it must be a function of tokens and "
                "logits."
            )
        if draft is not None and not isinstance(draft, (Draft, PromptLookup)):
            raise InputError(f"generate: draft is {draft!r}: it must be a Draft or a PromptLookup.")
        return cls(
            n_most,
            sampling,
            _stop_texts(stop),
            chosen_grammar(grammar, json_schema),
            n_likeliest,
            logits_processor,
            draft,
            shown,
        )


class Answer:
    """One answer while it grows.

    Attributes:
        prompt: int32[n], what it answers.
        tokens: those written so far, without one that ends the answer.
        finished: whether its last chunk has been made.
    """

    def __init__(
        self,
        core: _core.session.Session,
        model: Model,
        ids: npt.NDArray[np.int32],
        *,
        settings: AnswerSettings,
    ) -> None:
        grammar = None if settings.grammar is None else settings.grammar._core
        self._core = core
        self._model = model._open()
        if settings.logprobs is not None and settings.logprobs > self._model.n_vocab:
            raise InputError(
                f"generate: logprobs is {settings.logprobs}: the vocabulary has "
                f"{self._model.n_vocab} tokens."
            )
        self.prompt = ids
        self._settings = settings
        self._sampler = settings.sampling._sampler(self._model, core.n_ctx, grammar)
        self._text = text_stream(settings.stops, strip_space=_adds_space_after(model, int(ids[-1])))
        self._timer = Timer(len(ids))
        self.tokens: list[int] = []
        self.finished = False

    def start(self, n_reused: int) -> None:
        """Work on it begins; so many tokens of its prompt need not be read."""
        self._timer = Timer(len(self.prompt), n_reused)

    def prompt_done(self) -> None:
        """The prompt is read."""
        self._sampler.accept(self.prompt)
        self._timer.prompt_done()

    def proposal(self) -> npt.NDArray[np.int32]:
        """What the answer may go on with, by its draft; nothing without one."""
        draft = self._settings.draft
        if draft is None:
            return np.empty(0, np.int32)
        tokens, n_ctx, line = self._all_tokens(), self._core.n_ctx, self._core.rope_line
        room = min(n_ctx - len(tokens), self._settings.max_tokens - len(self.tokens)) - 1
        if len(tokens) <= line:  # guesses must not take a token across it before its time
            room = min(room, line - len(tokens))
        guesses = draft._propose(tokens, n_ctx, room) if room > 0 else tokens[:0]
        self._timer.guessed_tokens += len(guesses)
        return guesses

    def take(self, row: int, guess: int | None = None) -> Chunk:
        """Chooses the token after a row of logits, and gives what it adds to the text."""
        settings = self._settings
        token = self._choose(row)
        self._timer.accepted_tokens += token == guess
        if self._model.is_end_of_generation(token):
            return self._end(self._text.rest(), None, "stop")
        self.tokens.append(token)
        logprobs = self._logprobs(row, token)
        piece = self._text.add(self._model.piece(token, token in settings.shown))
        if self._text.stopped:
            return self._end(piece, token, "stop", logprobs)
        if len(self.tokens) == settings.max_tokens:
            return self._end(piece + self._text.rest(), token, "length", logprobs)
        return Chunk(piece, token, logprobs=logprobs)

    def cancelled(self) -> Chunk:
        """Its end, where somebody has called it off."""
        return self._end(self._text.rest(), None, "cancelled")

    def failed(self) -> Chunk:
        """What was held back of it, where it cannot go on."""
        return self._end(self._text.rest(), None, None)

    def _choose(self, row: int) -> int:
        processor = self._settings.logits_processor
        if processor is None:
            return self._core.sample(self._sampler, row)
        logits = self._core.logits(row)
        given = processor(self._all_tokens(), logits)
        try:
            changed = np.asarray(given)
        except ValueError:  # rows of several lengths
            changed = np.empty(0)
        if changed.shape != logits.shape or changed.dtype.kind != "f":
            raise InputError(
                f"generate: logits_processor gave {changed.dtype}{list(changed.shape)}: it must "
                f"return the logits, float32[{len(logits)}]."
            )
        with np.errstate(over="ignore"):
            changed = np.ascontiguousarray(changed, np.float32)
        if not np.isfinite(changed.max()):  # NaN where one of them is
            raise InputError(
                "generate: logits_processor gave logits that are not finite: -inf bans a token; "
                "leave one at least, and none NaN or above float32's range."
            )
        return self._sampler.sample(changed)

    def _logprobs(self, row: int, token: int) -> TokenLogprobs | None:
        if self._settings.logprobs is None:
            return None
        logprob, top = self._core.logprobs(row, token, self._settings.logprobs)
        return TokenLogprobs(token, logprob, tuple(top))

    def _all_tokens(self) -> npt.NDArray[np.int32]:
        return np.concatenate([self.prompt, np.array(self.tokens, np.int32)])

    def _end(
        self,
        text: str,
        token: int | None,
        reason: FinishReason | None,
        logprobs: TokenLogprobs | None = None,
    ) -> Chunk:
        self.finished = True
        timings = self._timer.timings(len(self.tokens))
        return Chunk(text, token, reason, timings, logprobs=logprobs)


def _adds_space_after(model: Model, token: int) -> bool:
    """Whether the tokenizer puts a space before text that follows this token."""
    metadata = model.metadata
    return (
        metadata.get("tokenizer.ggml.model") == "llama"
        and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        and model._open().is_control(token)
    )


def _stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise InputError(
            f"generate: stop is {stop!r}: it must be a text or several, none of them empty."
        )
    return tuple(texts)
