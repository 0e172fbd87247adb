"""What sessions do with adapters, control vectors and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.adapter import ControlVector, ScaledAdapter, control_rows, scaled_loras
from phiggml.embedder import Pooling, Texts, embed_texts
from phiggml.session_use import UsedSession

__all__ = ["AdaptedSession"]


class AdaptedSession(UsedSession):
    """The part of Session that changes what its model computes, and embeds texts."""

    def set_lora(self, adapters: Sequence[ScaledAdapter]) -> None:
        """Uses LoRA adapters from now on, instead of those before.

        What is in the context stays, and is evaluated again, with them, by the next call.

        Args:
            adapters: LoraAdapters, which add up, each alone or as a pair with its scale: 1 is as
                it was trained. None at all: the model as it is.

        Raises:
            InputError: one was loaded for another Model, is given twice, or its scale is not
                finite.
            UnsupportedError: llama.cpp's graph of the architecture has no room for so many.
            SessionError: an adapter is closed, the session is closed or used by another thread.

        Cost:
            Each adapted product takes two more, of its rank. The next call plans the graph anew.

        Source:
            llama_set_adapters_lora.
        """
        loras = scaled_loras(adapters)
        self._begin()
        _core.adapter.set_lora(self._core, loras)

    def set_control_vector(
        self,
        vector: ControlVector | None,
        *,
        scale: float = 1.0,
        first_layer: int | None = None,
        last_layer: int | None = None,
    ) -> None:
        """Adds a control vector to the outputs of layers from now on, instead of that before.

        What is in the context stays, and is evaluated again, with it, by the next call.

        Args:
            vector: the vector; None takes away the one before.
            scale: what it is multiplied by.
            first_layer, last_layer: the layers that it is added to, of those that it has.

        Raises:
            InputError: it is of another model's size; a layer that the model has not; a scale
                that is not finite.
            UnsupportedError: llama.cpp's graph of the architecture adds no vectors.
            SessionError: the session is closed or used by another thread.

        Cost:
            Copies the vector. The next call plans the graph anew.

        Source:
            llama_set_adapter_cvec.
        """
        rows = control_rows(
            vector,
            self._model._open(),
            scale=scale,
            first_layer=first_layer,
            last_layer=last_layer,
        )
        self._begin()
        _core.adapter.set_control_vector(self._core, rows)

    @overload
    def embed(
        self, texts: Texts, *, pooling: Literal["none"], normalize: bool = True
    ) -> list[npt.NDArray[np.float32]]: ...
    @overload
    def embed(
        self,
        texts: Texts,
        *,
        pooling: Literal["mean", "cls", "last"] | None = "mean",
        normalize: bool = True,
    ) -> npt.NDArray[np.float32]: ...
    def embed(
        self, texts: Texts, *, pooling: Pooling | None = "mean", normalize: bool = True
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]:
        """Turns texts into vectors, whatever is in the context, which stays as it is.

        Models that embed only (BERT's relatives), which a session cannot generate with, do it too.

        Args:
            texts: a text, or several; token ids in place of a text are taken as they are.
            pooling: a text's vector is the "mean" of its tokens', or that of its first ("cls") or
                "last" token; None is what the model's file asks for, the mean if it asks for
                nothing. "none" gives the tokens' own.
            normalize: whether each vector is divided by its length.

        Returns:
            float32[n, n_embd]; of pooling "none" a list of n arrays float32[n_tokens, n_embd].

        Raises:
            InputError: there are no texts, one of no tokens, or one of more than n_ctx.
            UnsupportedError: the model reads one text to write another.
            FormatError: the vocabulary cannot spell a text.
            SessionError: the session is closed or used by another thread; there is no memory; or
                the vectors are not finite.

        Cost:
            A second context, made at the first call and kept until the session is closed: a cache
            for the longest text so far, and the logits of a batch, which llama.cpp computes with
            the vectors. Short texts are decoded together. The GIL is released; Ctrl-C is seen
            within one graph.

        Source:
            The output of the last norm, as llama_get_embeddings gives it; pooled in double.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     vectors = session.embed(["A cat sat.", "The cat sat.", "What is GGUF?"])
            >>> vectors.shape
            (3, 256)
        """
        self._model._open()
        return embed_texts(self._core, self._model, texts, pooling=pooling, normalize=normalize)
