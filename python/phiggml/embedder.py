"""Texts to vectors: what goes into the embedder, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.model import Model, Tokens, token_array
from phiggml.runtime import forward_log

__all__ = ["Pooling", "Texts", "embed_texts"]

Pooling: TypeAlias = Literal["mean", "cls", "last", "none"]
Texts: TypeAlias = str | Sequence[str | Tokens]
Rows: TypeAlias = npt.NDArray[np.float32]

# As llama.cpp numbers them in a file.
_POOLINGS = ("none", "mean", "cls", "last")


def embed_texts(
    session: _core.session.Session,
    model: Model,
    texts: Texts,
    *,
    pooling: Pooling | None,
    normalize: bool,
) -> Rows | list[Rows]:
    """What `Session.embed` does."""
    name = _own_pooling(model) if pooling is None else pooling
    if not isinstance(name, str) or name not in _POOLINGS:
        raise InputError(
            f'embed: pooling is {pooling!r}: it must be "mean", "cls", "last", "none" or None.'
        )
    if not isinstance(normalize, bool):
        raise InputError(f"embed: normalize is {normalize!r}: it must be True or False.")
    ids = [_tokens(model, text) for text in _listed(texts)]
    try:
        rows = _core.embedder.embed(session, ids, name, normalize)
    finally:
        forward_log()
    if name != "none":
        return rows
    ends = np.cumsum([len(text) for text in ids])
    return np.split(rows, ends[:-1])


def _own_pooling(model: Model) -> str:
    """What the model's file asks for; the mean where it asks for nothing."""
    number = model.metadata.get(f"{model.metadata['general.architecture']}.pooling_type")
    if not isinstance(number, int) or not 0 < number < len(_POOLINGS):
        return "mean"
    return _POOLINGS[number]


def _listed(texts: Texts) -> Sequence[str | Tokens]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence) or not texts:
        raise InputError(
            f"embed: texts is {type(texts).__name__}: it must be a text or a sequence of some."
        )
    return texts


def _tokens(model: Model, text: str | Tokens) -> npt.NDArray[np.int32]:
    return model.tokenize(text) if isinstance(text, str) else token_array(text, "embed")
