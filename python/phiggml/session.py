"""Sessions: a context over a model, from tokens to logits and from a prompt to text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.chat import Message
from phiggml.chat_answer import AnswerParts, opens_reasoning, split_chunks
from phiggml.completion import Chunk, Completion, TextStream, Timer
from phiggml.errors import InputError, SessionError
from phiggml.model import Model, Tokens, marker_tokens, token_array
from phiggml.placement_settings import SessionSettings
from phiggml.runtime import forward_log, thread_count
from phiggml.sampling import Sampling
from phiggml.session_adapted import AdaptedSession

__all__ = ["Session"]

_DEFAULT_SAMPLING = Sampling()

SMALL_MODEL = 32 << 20
"""Bytes of weights up to which threads=None is one thread (docs/decisions.md, 2026-11-22)."""


class Session(AdaptedSession):
    """A context over a model: what it has read so far, and the memory for that.

    Args:
        model: a Model, or the path of one, which is then loaded and closed with the session.
        n_ctx: tokens that a sequence may have; None means the model's own number, at most 4096.
        n_batch: tokens that are evaluated at once.
        n_seq_max: sequences in the context.
        type_k, type_v: quant types of the KV cache.
        flash_attn: True, False, or "auto".
        offload_kv: keep a layer's part of the KV cache on the layer's device, not on the CPU.
        threads: how many to use; None means all cores available to the process, and one for a
            model below 32 MiB, whose threads would wait for each other more than they compute.

    Raises:
        InputError: a setting is out of range.
        SessionError: there is no memory for the context.
        OSError, FormatError, DeviceError: as Model, when a path is given.

    Cost:
        The KV cache and the compute buffers, for n_ctx * n_seq_max tokens.

    Source:
        llama_context.

    Example:
        >>> import phiggml as pg
        >>> with pg.Session("phi3-nano.gguf") as session:
        ...     session.chat([{"role": "user", "content": "What is GGUF?"}], max_tokens=40,
        ...                  sampling=pg.Sampling(temperature=0), stop=" of").text
        'GGUF is the file format'
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_seq_max: int = 1,
        type_k: str = "F16",
        type_v: str = "F16",
        flash_attn: bool | Literal["auto"] = "auto",
        offload_kv: bool = True,
        threads: int | None = None,
    ) -> None:
        asked = SessionSettings(n_ctx, n_batch, n_seq_max, type_k, type_v, flash_attn, offload_kv)
        self._owns_model = not isinstance(model, Model)
        self._model = model if isinstance(model, Model) else Model(model, session=asked)
        self._use = 0
        try:
            core_model = self._model._open()
            settings = asked._core_settings(core_model.n_ctx_train)
            settings.threads = _threads(threads, core_model.n_bytes)
            self._n_threads = settings.threads
            self._core = _core.session.Session(core_model, settings)
        except BaseException:
            if self._owns_model:
                self._model.close()
            raise
        finally:
            forward_log()

    @property
    def model(self) -> Model:
        """The model that this session runs."""
        return self._model

    @property
    def n_ctx(self) -> int:
        """Tokens that a sequence may have."""
        return self._core.n_ctx

    @property
    def threads(self) -> int:
        """Threads that it computes with."""
        return self._n_threads

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """int32[n], the tokens of sequence 0; a copy."""
        return self._core.tokens(0)

    def sequence_tokens(self, sequence: int) -> npt.NDArray[np.int32]:
        """Gives the tokens of one of the sequences in the context.

        Args:
            sequence: which, from 0 to n_seq_max - 1.

        Returns:
            int32[n]; a copy.

        Raises:
            InputError: there is no such sequence.
            SessionError: the session is closed or used by another thread.
        """
        return self._core.tokens(_sequence(sequence))

    def eval(
        self, tokens: Tokens, *, logits: Literal["last", "all"] = "last", sequence: int = 0
    ) -> npt.NDArray[np.float32]:
        """Appends tokens to the context and gives the logits of what comes next.

        A model with long rope (Phi-3.5-mini, Phi-4-mini, the 128k ones) reads positions in one way
        up to its original context, 4096 tokens, and in another beyond, by the length of the whole
        sequence: the result is that of one evaluation of all its tokens, whatever n_ctx is and
        however they came.

        Args:
            tokens: int[n], n >= 1.
            logits: "last" for those after the last token, "all" for those after each.
            sequence: which of the n_seq_max texts in the context they continue, from 0.

        Returns:
            float32[n_vocab], or float32[n, n_vocab]; a copy, which later calls leave alone.

        Raises:
            InputError: no tokens, one that is not in the vocabulary, or no such sequence.
            SessionError: the context has no room for them, the session is closed or used by
                another thread, or decoding failed. The context is then as it was.

        Cost:
            The GIL is released; Ctrl-C is seen within one graph and leaves the context as it was.
            A sequence that crosses the line of long rope is evaluated anew, once.

        Source:
            llama_decode; for long rope, modeling_rope_utils.py of transformers.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     session.eval([1, 2, 3]).shape == (session.model.n_vocab,)
            True
        """
        if logits not in ("last", "all"):
            raise InputError(f'eval: logits is {logits!r}: it must be "last" or "all".')
        self._use += 1
        try:
            rows = self._core.eval(
                token_array(tokens, "eval"), logits == "all", _sequence(sequence)
            )
        finally:
            forward_log()
        return rows if logits == "all" else rows[0]

    def generate(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
    ) -> Completion:
        """Answers a prompt: forgets what is in the context, reads the prompt, and writes on.

        Args:
            prompt: text, in which control tokens are read as such, or token ids.
            max_tokens: write at most this many.
            sampling: how tokens are chosen.
            stop: a text, or several, that ends the answer and is no part of it.

        Returns:
            Completion.

        Raises:
            InputError: an empty prompt, a max_tokens below 1, an empty stop text, or a sampling
                value out of range.
            SessionError: prompt and answer do not fit into n_ctx; as `eval`.

        Cost:
            As `eval`, for the prompt and then for each token.

        Example:
            >>> import phiggml as pg
            >>> greedy = pg.Sampling(temperature=0)
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     answer = session.generate("The child", max_tokens=5, sampling=greedy)
            >>> len(answer.tokens), answer.finish_reason
            (5, 'length')
        """
        chunks = list(self.stream(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop))
        return Completion.of(chunks)

    def stream(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Chunk]:
        """As `generate`, handing out the answer while it grows.

        Args:
            prompt, max_tokens, sampling, stop: as for `generate`.

        Returns:
            An iterator of Chunk. The last one has the finish_reason and the timings. Arguments
            are checked at once; work is done as it is asked for.

        Raises:
            InputError: as `generate`.
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
        return self._stream(prompt, max_tokens, sampling, stop=stop)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
    ) -> Completion:
        """Answers a chat, rendered with the model's own template.

        Args:
            messages: the turns, oldest first: {"role": "user", "content": "..."}; an answer's
                `message` is the next of them.
            tools, variables: as for `Model.chat_prompt`.
            max_tokens, sampling, stop: as for `generate`.

        Returns:
            Completion; reasoning and tool calls, however the model marks them, are told apart
            from its text.

        Raises:
            UnsupportedError: the model has no chat template, or it has no place for tools.
            InputError, FormatError: as `render_chat`.
            InputError, SessionError: as `generate`.

        Cost:
            As `generate`: the whole chat is read anew.
        """
        chunks = self.stream_chat(
            messages,
            tools=tools,
            variables=variables,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
        )
        return Completion.of(list(chunks))

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Chunk]:
        """As `chat`, handing out the answer while it grows.

        Args:
            messages, tools, variables, max_tokens, sampling, stop: as for `chat`.

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
        chunks = self._stream(
            prompt, max_tokens, sampling, stop=stop, shown=marker_tokens(self._model)
        )
        return split_chunks(chunks, parts)

    def reset(self, *, sequence: int | None = None) -> None:
        """Forgets what is in the context.

        Args:
            sequence: the one to forget; None forgets all.

        Raises:
            InputError: there is no such sequence.
            SessionError: the session is closed or used by another thread.
        """
        self._use += 1
        if sequence is None:
            self._core.reset()
        else:
            self._core.reset_sequence(_sequence(sequence))

    def close(self) -> None:
        """Frees the context, and the model where the session loaded it; again does nothing.

        Raises:
            SessionError: another thread is using the session.
        """
        self._core.close()
        if self._owns_model:
            self._model.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._core.closed:
            return "<Session, closed>"
        try:
            return f"<Session of {self._model!r}, {len(self.tokens)} of {self.n_ctx} tokens>"
        except SessionError:
            return f"<Session of {self._model!r}, in use by another thread>"

    def _stream(
        self,
        prompt: str | Tokens,
        max_tokens: int,
        sampling: Sampling,
        *,
        stop: str | Sequence[str],
        shown: frozenset[int] = frozenset(),
    ) -> Iterator[Chunk]:
        """`stream`, where the control tokens in `shown` are spelt out."""
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise InputError(f"generate: max_tokens is {max_tokens!r}: it must be an integer >= 1.")
        if not isinstance(sampling, Sampling):
            raise InputError(f"generate: sampling is {sampling!r}: it must be a Sampling.")
        stops = _stop_texts(stop)
        ids = self._prompt_ids(prompt)
        sampler = sampling._sampler(self._model._open(), self.n_ctx)
        self._use += 1
        self._core.reset()
        return self._written(ids, max_tokens, sampler, stops=stops, shown=shown, use=self._use)

    def _prompt_ids(self, prompt: str | Tokens) -> npt.NDArray[np.int32]:
        if isinstance(prompt, str):
            bos = self._model._special_tokens().get("bos_token")
            has_bos = bool(bos) and prompt.startswith(str(bos))
            ids = self._model.tokenize(prompt, add_special=not has_bos, parse_special=True)
        else:
            ids = token_array(prompt, "generate")
        if len(ids) == 0:
            raise InputError("generate: the prompt is empty. Give at least one token.")
        return ids

    def _written(
        self,
        ids: npt.NDArray[np.int32],
        max_tokens: int,
        sampler: _core.sampling.Sampler,
        *,
        stops: tuple[str, ...],
        shown: frozenset[int],
        use: int,
    ) -> Iterator[Chunk]:
        self._require_no_other_use(use)
        core_model = self._model._open()
        text = TextStream(stops, strip_space=self._adds_space_after(int(ids[-1])))
        timer = Timer(len(ids))
        try:
            self._core.prefill(ids)
            sampler.accept(ids)
            timer.prompt_done()
            for n in range(1, max_tokens + 1):
                token = self._core.sample(sampler)
                if core_model.is_end_of_generation(token):
                    yield Chunk(text.rest(), None, "stop", timer.timings(n - 1))
                    return
                piece = text.add(core_model.piece(token, token in shown))
                if text.stopped:
                    yield Chunk(piece, token, "stop", timer.timings(n))
                    return
                if n == max_tokens:
                    yield Chunk(piece + text.rest(), token, "length", timer.timings(n))
                    return
                yield Chunk(piece, token, None, None)
                self._require_no_other_use(use)
                self._core.prefill(np.array([token], np.int32))
        finally:
            forward_log()

    def _require_no_other_use(self, use: int) -> None:
        if self._use != use:
            raise SessionError(
                "stream: the session was used for something else meanwhile. Read a stream to its "
                "end first, or make a second Session."
            )

    def _adds_space_after(self, token: int) -> bool:
        """Whether the tokenizer puts a space before text that follows this token."""
        metadata = self._model.metadata
        return (
            metadata.get("tokenizer.ggml.model") == "llama"
            and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
            and self._model._open().is_control(token)
        )


def _threads(threads: int | None, n_bytes: int) -> int:
    if threads is None and n_bytes < SMALL_MODEL:
        return 1
    return thread_count(threads, "session", physical=True)


def _stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise InputError(
            f"generate: stop is {stop!r}: it must be a text or several, none of them empty."
        )
    return tuple(texts)


def _sequence(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 30:
        raise InputError(f"session: sequence is {value!r}: it must be a whole number from 0.")
    return value
