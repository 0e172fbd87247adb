"""Guesses at what an answer goes on with, which the model checks several at a time."""

from __future__ import annotations

import os
from types import TracebackType

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError, SessionError
from phiggml.model import Model
from phiggml.prompt_lookup import PromptLookup, check_count
from phiggml.runtime import session_threads
from phiggml.sampling import Sampling

__all__ = ["Draft", "PromptLookup"]


class Draft:
    """Guesses by a smaller model of the same vocabulary.

    Its likeliest tokens are checked in one evaluation. The answer is the one without guesses, but
    for rounding: the large model's logits decide on every token.

    Args:
        model: a Model, or the path of one, which is then loaded and closed with the draft.
        n: tokens to guess at once, 1 to 64.
        threads: as for Session.

    Raises:
        InputError: n is out of range.
        OSError, FormatError, DeviceError: as Model, when a path is given.

    Cost:
        A context of its own, as long as the session's, made when it is first used. One session
        uses it at a time.

    Source:
        Speculative decoding, Leviathan et al., arXiv:2211.17192, with greedy guesses.

    Example:
        >>> import phiggml as pg
        >>> with pg.Draft("phi3-nano.gguf") as draft, pg.Session("phi3-nano.gguf") as session:
        ...     answer = session.generate("The child", max_tokens=8, draft=draft)
        >>> len(answer.tokens) <= 8
        True
    """

    def __init__(
        self, model: Model | str | os.PathLike[str], *, n: int = 8, threads: int | None = None
    ) -> None:
        check_count("n", n)
        session_threads(threads, 0)
        self._n = n
        self._threads = threads
        self._closed = False
        self._owns_model = not isinstance(model, Model)
        self._model = model if isinstance(model, Model) else Model(model)
        self._core: _core.session.Session | None = None
        self._greedy: _core.sampling.Sampler | None = None

    @property
    def model(self) -> Model:
        """The model that guesses."""
        return self._model

    def close(self) -> None:
        """Frees its context, and its model where it loaded it; again does nothing.

        Raises:
            SessionError: a session on another thread is using it.
        """
        if self._core is not None:
            self._core.close()
            self._core = None
        self._closed = True
        if self._owns_model:
            self._model.close()

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _require_same_vocabulary(self, model: Model) -> None:
        if self._closed:
            raise SessionError("generate: the draft is closed. Make a new one.")
        if self._model.n_vocab != model.n_vocab or list(
            self._model.metadata.get("tokenizer.ggml.tokens", ())
        ) != list(model.metadata.get("tokenizer.ggml.tokens", ())):
            raise InputError(
                "generate: the draft's model has another vocabulary than the session's. Choose a "
                "smaller model of the same family."
            )

    def _propose(
        self, tokens: npt.NDArray[np.int32], n_ctx: int, n_most: int
    ) -> npt.NDArray[np.int32]:
        core = self._context(n_ctx)
        n_reused = core.reuse(tokens, 0)
        core.advance([(0, tokens[n_reused:], 1)])
        guesses: list[int] = []
        assert self._greedy is not None
        while True:
            token = core.sample(self._greedy, 0)
            if self._model._open().is_end_of_generation(token):
                break
            guesses.append(token)
            if len(guesses) == min(self._n, n_most):
                break
            core.advance([(0, np.array([token], np.int32), 1)])
        return np.array(guesses, np.int32)

    def _context(self, n_ctx: int) -> _core.session.Session:
        if self._closed:
            raise SessionError("generate: the draft is closed. Make a new one.")
        core_model = self._model._open()
        if self._core is not None and self._core.n_ctx < n_ctx:
            self._core.close()
            self._core = None
        if self._core is None:
            settings = _core.session.SessionSettings()
            settings.n_ctx = n_ctx
            settings.n_batch = 512
            settings.threads = session_threads(self._threads, core_model.n_bytes)
            self._core = _core.session.Session(core_model, settings)
            self._greedy = Sampling(temperature=0)._sampler(core_model, n_ctx)
        return self._core
