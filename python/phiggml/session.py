"""Sessions: a context over a model, from tokens to logits and from a prompt to text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError, SessionError
from phiggml.model import Model, Tokens, token_array
from phiggml.number import integer
from phiggml.placement_settings import SessionSettings
from phiggml.runtime import forward_log, session_threads
from phiggml.session_async import AsyncSession
from phiggml.session_state import StoredSession
from phiggml.session_state import checked_sequence as _sequence

__all__ = ["Score", "Session"]


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        tokens: int32[n], the text's.
        logprobs: float32[n]: the natural logarithm of the probability of each, given those before
            it; NaN for the first, which nothing comes before.
    """

    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @property
    def total(self) -> float:
        """The logarithm of the probability of all but the first, together."""
        return float(np.sum(self.logprobs[1:], dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise; NaN for a single token."""
        n = len(self.tokens) - 1
        return math.exp(-self.total / n) if n > 0 else math.nan


class Session(AsyncSession, StoredSession):
    """A context over a model: what it has read so far, and the memory for that.

    Args:
        model: a Model, or the path of one, which is then loaded and closed with the session.
        n_ctx: tokens that a sequence may have; None means the model's own number, at most 4096.
        n_batch: tokens that are evaluated at once.
        n_seq_max: sequences in the context.
        type_k, type_v: quant types of the KV cache.
        flash_attn: True, False, or "auto".
        offload_kv: keep a layer's part of the KV cache on the layer's device, not on the CPU.
        swa_full: keep all tokens in layers with a sliding window (Phi-3-mini-4k: 2047 tokens),
            not only those in the window. False takes less memory where n_ctx is longer than the
            window, and reads a sequence anew where tokens are taken off its end.
        overflow: what to do with tokens that the context has no room for: "error" raises
            SessionError; "shift" drops the older half of the sequence but its first 4 tokens, as
            often as it takes, and goes on. What is left keeps what it knew of what has left; with
            scaled or learned positions, a sliding window, a recurrent state or keys of another
            type than F32 and F16, it is read again, without. A prompt longer than n_ctx is refused.
        threads: how many to use; None means all cores available to the process, and one for a
            model below 32 MiB, whose threads would wait for each other more than they compute.

    Raises:
        InputError: a setting is out of range.
        SessionError: there is no memory for the context.
        DeviceError: a GPU has none.
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
        swa_full: bool = True,
        overflow: Literal["error", "shift"] = "error",
        threads: int | None = None,
    ) -> None:
        asked = SessionSettings(
            n_ctx, n_batch, n_seq_max, type_k, type_v, flash_attn, offload_kv, swa_full
        )
        if overflow not in ("error", "shift"):
            raise InputError(f'session: overflow is {overflow!r}: it must be "error" or "shift".')
        self._owns_model = not isinstance(model, Model)
        self._model = model if isinstance(model, Model) else Model(model, session=asked)
        self._use = 0
        self._n_ahead = 0  # tokens that sequence 0 has before the answer has come to them
        try:
            core_model = self._model._open()
            settings = asked._core_settings(core_model.n_ctx_train)
            settings.threads = session_threads(threads, core_model.n_bytes)
            settings.shifts = overflow == "shift"
            self._n_threads = settings.threads
            self._n_sequences = settings.n_seq_max
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
        return self.sequence_tokens(0)

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
        tokens = self._core.tokens(_sequence(sequence))
        return tokens[: len(tokens) - self._n_ahead] if sequence == 0 else tokens

    def eval(
        self,
        tokens: Tokens,
        *,
        logits: Literal["last", "all"] | Sequence[int] | npt.NDArray[np.integer[Any]] = "last",
        sequence: int = 0,
    ) -> npt.NDArray[np.float32]:
        """Appends tokens to the context and gives the logits of what comes next.

        A model with long rope (Phi-3.5-mini, Phi-4-mini, the 128k ones) reads positions in one way
        up to its original context, 4096 tokens, and in another beyond, by the length of the whole
        sequence: the result is that of one evaluation of all its tokens, whatever n_ctx is and
        however they came.

        Args:
            tokens: int[n], n >= 1.
            logits: "last" for those after the last token, "all" for those after each, or int[k],
                the places among these tokens, from 0, after which they are wanted.
            sequence: which of the n_seq_max texts in the context they continue, from 0.

        Returns:
            float32[n_vocab], float32[n, n_vocab] or float32[k, n_vocab]; a copy, which later
            calls leave alone.

        Raises:
            InputError: no tokens, one that is not in the vocabulary, or no such sequence or place.
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
        ids = token_array(tokens, "eval")
        places = _places(logits, len(ids))
        wanted, order = np.unique(places, return_inverse=True)
        self._begin()
        try:
            rows = self._core.eval(ids, wanted.tolist(), _sequence(sequence))
        finally:
            forward_log()
        if isinstance(logits, str):
            return rows if logits == "all" else rows[0]
        return (
            rows if len(wanted) == len(places) and np.all(order[:-1] < order[1:]) else rows[order]
        )

    def score(self, text: str | Tokens) -> Score:
        """Says how likely the model finds a text, with nothing before it in sequence 0.

        Args:
            text: text, in which control tokens are text as well, or token ids.

        Returns:
            Score; the log probabilities are those of the model, whatever Sampling would do.

        Raises:
            InputError: an empty text, or a token that is not in the vocabulary.
            SessionError: it does not fit into n_ctx; as `eval`.

        Cost:
            As `eval`; no logits are kept.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     session.score("GGUF is the file format").total > session.score(
            ...         "GGUF the format file is").total
            True
        """
        ids = self._model.tokenize(text) if isinstance(text, str) else token_array(text, "score")
        if len(ids) == 0:
            raise InputError("score: the text is empty. Give at least one token.")
        self._begin()
        self._core.reset_sequence(0)
        try:
            logprobs = self._core.score(ids, 0)
        finally:
            forward_log()
        return Score(ids, np.concatenate([np.array([np.nan], np.float32), logprobs]))

    def fork(self, source: int, target: int) -> None:
        """Makes a sequence the same as another, without evaluating it.

        Args:
            source: the one to copy.
            target: the one that is forgotten for it.

        Raises:
            InputError: there is no such sequence.
            SessionError: the session is closed or used by another thread.

        Cost:
            The next call copies the cache of one sequence.

        Source:
            llama_memory_seq_cp.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf", n_seq_max=2) as session:
            ...     _ = session.eval([1, 2, 3])
            ...     session.fork(0, 1)
            ...     session.sequence_tokens(1).tolist()
            [1, 2, 3]
        """
        self._begin()
        self._core.fork(_sequence(source), _sequence(target))

    def truncate(self, n_tokens: int, *, sequence: int = 0) -> None:
        """Forgets a sequence's tokens after the first so many.

        Args:
            n_tokens: how many to keep; a longer one than the sequence changes nothing.
            sequence: which.

        Raises:
            InputError: there is no such sequence, or n_tokens is no number from 0.
            SessionError: the session is closed or used by another thread.

        Cost:
            None, where the model's memory can go back: a recurrent one, and a short cache of a
            window (swa_full=False), are read again by the next call.

        Source:
            llama_memory_seq_rm.
        """
        n_kept = integer(n_tokens, 0)
        if n_kept is None:
            raise InputError(
                f"truncate: n_tokens is {n_tokens!r}: it must be a whole number from 0."
            )
        self._begin()
        self._core.truncate(min(n_kept, 1 << 31), _sequence(sequence))

    def reset(self, *, sequence: int | None = None) -> None:
        """Forgets what is in the context.

        Args:
            sequence: the one to forget; None forgets all.

        Raises:
            InputError: there is no such sequence.
            SessionError: the session is closed or used by another thread.
        """
        self._begin()
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


def _places(logits: object, n_tokens: int) -> npt.NDArray[np.int64]:
    """The places that `eval(logits=...)` names."""
    if isinstance(logits, str):
        if logits not in ("last", "all"):
            raise InputError(
                f'eval: logits is {logits!r}: it must be "last", "all" or a list of places.'
            )
        return np.arange(max(n_tokens - 1, 0) if logits == "last" else 0, n_tokens)
    try:
        places = np.asarray(logits)
    except ValueError:  # rows of several lengths
        places = np.empty((0, 0))
    if places.ndim != 1 or (places.size > 0 and places.dtype.kind not in "iu"):
        raise InputError('eval: logits must be "last", "all" or a flat list of places.')
    if places.size > 0 and not (places.min() >= 0 and places.max() < n_tokens):
        raise InputError(
            f"eval: logits names a place outside the {n_tokens} tokens, which count from 0."
        )
    return places.astype(np.int64)
