"""Nearest vectors among quantized ones: an extension of its own over the ggml of phiggml."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import phiggml as pg  # first: it loads the libraries that _core is linked with
from quantized_search import _core

__all__ = ["device_names", "nearest"]


def nearest(
    vectors: pg.QuantizedArray, query: npt.ArrayLike, k: int = 10
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The rows of `vectors` that point most nearly where `query` does, and their cosines."""
    cosines = _core.cosines(
        vectors.data, vectors.type.id, np.ascontiguousarray(query, dtype=np.float32)
    )
    order = np.argsort(-cosines, kind="stable")[:k]
    return order, cosines[order]


def device_names() -> list[str]:
    """The devices that phiggml has loaded backends for: there is one ggml, and one list."""
    pg.devices()
    names: list[str] = _core.device_names()
    return names
