"""What sessions do to write: answers to prompts and chats, one at a time or many together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.answer import Answer, AnswerSettings, LogitsProcessor
from phiggml.chat import Message
from phiggml.chat_answer import AnswerParts, opens_reasoning, split_chunks
from phiggml.completion import Chunk, Completion
from phiggml.errors import InputError, SessionError
from phiggml.grammar import Grammar
from phiggml.model import Tokens, marker_tokens, token_array
from phiggml.prompt_lookup import PromptLookup
from phiggml.runtime import forward_log
from phiggml.sampling import Sampling
from phiggml.session_adapted import AdaptedSession
from phiggml.speculation import Draft

__all__ = ["WritingSession"]

DEFAULT_SAMPLING = Sampling()


class WritingSession(AdaptedSession):
    """The part of Session that answers."""

    _n_sequences: int

    def generate(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Completion:
        """Answers a prompt, with nothing else in sequence 0 of the context.

        What the context has in common with the beginning of the prompt is not read again.

        Args:
            prompt: text, in which control tokens are read as such, or token ids.
            max_tokens: write at most this many.
            sampling: how tokens are chosen.
            stop: a text, or several, that ends the answer and is no part of it.
            grammar: what the answer may be, in llama.cpp's notation (GBNF).
            json_schema: the same, as a mapping or JSON text.
            logprobs: give each token's, and so many of the likeliest in its place.
            logits_processor: from tokens so far and the next one's logits, float32[n_vocab], to
                other logits; it may change and return those.
            draft: guesses at several tokens, which are then checked together.

        Returns:
            Completion.

        Raises:
            InputError: an empty prompt, a wrong grammar or schema, or a value out of range.
            UnsupportedError: a schema that cannot be kept to.
            SessionError: all does not fit into n_ctx (its `completion` was written); as `eval`.

        Cost:
            As `eval`, for the prompt and then for each token.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     answer = session.generate("The sky is", max_tokens=5,
            ...                               grammar='root ::= " red" | " blue"')
            >>> answer.text in (" red", " blue")
            True
        """
        chunks = self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return Completion.read(chunks)

    def stream(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, handing out the answer while it grows.

        Args:
            prompt, max_tokens, sampling, stop, grammar, json_schema, logprobs, logits_processor,
                draft: as for `generate`.

        Returns:
            An iterator of Chunk. The last one has the finish_reason and the timings. Arguments
            are checked at once; work is done as it is asked for.

        Raises:
            InputError, UnsupportedError: as `generate`.
            SessionError: as `generate`, and when the session is used for something else, or
                closed, before the iterator has ended.

        Cost:
            As `generate`.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     [chunk.finish_reason for chunk in session.stream("The child", max_tokens=3)]
            [None, None, 'length']
        """
        settings = AnswerSettings.checked(
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return self._stream(prompt, settings)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Completion:
        """Answers a chat, rendered with the model's own template.

        Turns that the context already holds are not read again.

        Args:
            messages: the turns, oldest first: {"role": "user", "content": "..."}; an answer's
                `message` is the next of them.
            tools, variables: as for `Model.chat_prompt`.
            max_tokens, sampling, stop, grammar, json_schema, logprobs, logits_processor, draft: as
                for `generate`.

        Returns:
            Completion; reasoning and tool calls, however the model marks them, are told apart
            from its text.

        Raises:
            UnsupportedError: the model has no chat template, or it has no place for tools.
            InputError, FormatError: as `render_chat`.
            InputError, UnsupportedError, SessionError: as `generate`.

        Cost:
            As `generate`.
        """
        chunks = self.stream_chat(
            messages,
            tools=tools,
            variables=variables,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return Completion.read(chunks)

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Iterator[Chunk]:
        """As `chat`, handing out the answer while it grows.

        Args:
            messages, tools, variables, max_tokens, sampling, stop, grammar, json_schema, logprobs,
                logits_processor, draft: as for `chat`.

        Returns:
            An iterator of Chunk, whose `kind` says which part of the answer it belongs to. No
            marker is in them, unless a call is malformed or the answer's end has cut it. A tool
            call comes whole.

        Raises:
            UnsupportedError, InputError, FormatError: as `chat`.
            SessionError: as `stream`.

        Cost:
            As `generate`.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     chunks = list(session.stream_chat([{"role": "user", "content": "Hi"}]))
            >>> {chunk.kind for chunk in chunks}
            {'text'}
        """
        prompt = self._model.chat_prompt(messages, tools=tools, variables=variables)
        parts = AnswerParts(reasoning=opens_reasoning(prompt), functools=bool(tools))
        settings = AnswerSettings.checked(
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
            shown=marker_tokens(self._model),
        )
        return split_chunks(self._stream(prompt, settings), parts)

    def generate_batch(
        self,
        prompts: Sequence[str | Tokens],
        *,
        max_tokens: int,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
    ) -> list[Completion]:
        """Answers many prompts, each as `generate` would, and decodes them together.

        Args:
            prompts: any number; as many as there are sequences in the context (n_seq_max) are
                worked on at a time, in their order.
            max_tokens, sampling, stop, grammar, json_schema, logprobs: as for `generate`, of each.

        Returns:
            A Completion for each prompt, in order.

        Raises:
            InputError, UnsupportedError: as `generate`.
            SessionError: as `generate`; its `completions` are what all prompts have so far.

        Cost:
            The weights are read once for the next tokens of all sequences: with 8 sequences a
            CPU writes about three times as many tokens a second as one after the other.

        Example:
            >>> import phiggml as pg
            >>> greedy = pg.Sampling(temperature=0)
            >>> with pg.Session("phi3-nano.gguf", n_seq_max=2) as session:
            ...     answers = session.generate_batch(["The child", "A dog", "GGUF"],
            ...                                      max_tokens=4, sampling=greedy)
            >>> [len(answer.tokens) for answer in answers]
            [4, 4, 4]
        """
        settings = AnswerSettings.checked(
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
        )
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, (Sequence, np.ndarray)):
            raise InputError(
                f"generate_batch: prompts is a {type(prompts).__name__}. Pass a list of them."
            )
        answers = [
            Answer(self._core, self._model, ids, settings=settings)
            for ids in [self._prompt_ids(prompt) for prompt in prompts]
        ]
        return self._completed(answers)

    def cancel(self) -> None:
        """Ends what the session is doing; may be called from any thread.

        An answer ends with the finish_reason "cancelled" and what it has by then; `eval` and
        `score` raise. Where nothing is under way, nothing happens.

        Cost:
            The call under way ends within a graph node on the CPU, on a GPU within the tokens
            that are evaluated at once.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     chunks = session.stream("The child", max_tokens=100)
            ...     _ = next(chunks)
            ...     session.cancel()
            ...     [chunk.finish_reason for chunk in chunks]
            ['cancelled']
        """
        self._core.cancel()

    def _stream(self, prompt: str | Tokens, settings: AnswerSettings) -> Iterator[Chunk]:
        if settings.draft is not None and isinstance(settings.draft, Draft):
            settings.draft._require_same_vocabulary(self._model)
        ids = self._prompt_ids(prompt)
        answer = Answer(self._core, self._model, ids, settings=settings)
        return self._written(ids, answer, self._begin())

    def _written(self, ids: npt.NDArray[np.int32], answer: Answer, use: int) -> Iterator[Chunk]:
        self._require_no_other_use(use)
        try:
            n_reused = self._core.reuse(ids, 0)
            answer.start(n_reused)
            pending, guesses = ids[n_reused:], np.empty(0, np.int32)
            while True:
                try:
                    self._core.advance([(0, np.concatenate([pending, guesses]), 1 + len(guesses))])
                except SessionError:
                    if self._core.cancelled:
                        yield answer.cancelled()
                        return
                    if answer.tokens and not self._core.closed:
                        yield answer.failed()
                    raise
                if not answer.tokens:
                    answer.prompt_done()
                yield from self._taken(answer, guesses, use)
                if answer.finished:
                    return
                self._require_no_other_use(use)
                pending, guesses = np.array(answer.tokens[-1:], np.int32), answer.proposal()
        finally:
            forward_log()

    def _taken(self, answer: Answer, guesses: npt.NDArray[np.int32], use: int) -> Iterator[Chunk]:
        """The chunks that a step gave: one, and one more for each guess that was right."""
        self._n_ahead = len(guesses)
        try:
            for row in range(1 + len(guesses)):
                chunk = answer.take(row, int(guesses[row]) if row < len(guesses) else None)
                self._require_no_other_use(use)
                right = row < len(guesses) and chunk.token == guesses[row]
                if answer.finished or not right:
                    self._hand_back()
                    yield chunk
                    return
                yield chunk
                self._require_no_other_use(use)
                if self._core.cancelled or self._n_ahead == 0:  # handed back meanwhile
                    return
                self._n_ahead -= 1
        finally:
            if self._use == use and not self._core.closed:
                self._hand_back()

    def _completed(self, answers: Sequence[Answer]) -> list[Completion]:
        chunks: dict[Answer, list[Chunk]] = {answer: [] for answer in answers}
        self._begin()
        try:
            for answer, chunk in self._together(deque(answers)):
                chunks[answer].append(chunk)
        except SessionError as error:
            for answer in answers:
                if not answer.finished:
                    chunks[answer].append(answer.failed())
            error.completions = tuple(Completion.of(chunks[answer]) for answer in answers)
            raise
        finally:
            forward_log()
        return [Completion.of(chunks[answer]) for answer in answers]

    def _together(self, waiting: deque[Answer]) -> Iterator[tuple[Answer, Chunk]]:
        running: dict[int, Answer] = {}
        free = deque(range(self._n_sequences))
        while waiting or running:
            additions: list[tuple[int, npt.NDArray[np.int32], int]] = []
            for sequence, answer in running.items():
                additions.append((sequence, np.array(answer.tokens[-1:], np.int32), 1))
            while waiting and free:
                sequence, answer = free.popleft(), waiting.popleft()
                n_reused = self._core.reuse(answer.prompt, sequence)
                answer.start(n_reused)
                additions.append((sequence, answer.prompt[n_reused:], 1))
                running[sequence] = answer
            try:
                self._core.advance(additions)
            except SessionError:
                if not self._core.cancelled:
                    raise
                for answer in [*running.values(), *waiting]:
                    yield answer, answer.cancelled()
                return
            for row, (sequence, _, _) in enumerate(additions):
                answer = running[sequence]
                if not answer.tokens:
                    answer.prompt_done()
                yield answer, answer.take(row)
                if answer.finished:
                    del running[sequence]
                    free.append(sequence)

    def _prompt_ids(self, prompt: str | Tokens) -> npt.NDArray[np.int32]:
        if isinstance(prompt, str):
            bos = self._model._special_tokens().get("bos_token")
            has_bos = bool(bos) and prompt.startswith(str(bos))
            ids = self._model.tokenize(prompt, add_special=not has_bos, parse_special=True)
        else:
            ids = token_array(prompt, "generate")
        if len(ids) == 0:
            raise InputError("generate: the prompt is empty. Give at least one token.")
        if len(ids) > self._core.n_ctx:
            raise SessionError(
                f"generate: the prompt's {len(ids)} tokens do not fit into n_ctx = "
                f"{self._core.n_ctx}. Make a session with a larger n_ctx."
            )
        return ids
