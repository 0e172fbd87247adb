"""The importances of columns that --imatrix names: one vector, or those of a model's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.cli_compare_source import FloatTensor, load_npy
from phiggml.imatrix import read_imatrix

__all__ = ["Importances", "read_importances"]


class Importances:
    """What a file says about the importance of columns."""

    def __init__(
        self,
        path: str,
        named: Mapping[str, npt.NDArray[np.float32]],
        *,
        vector: npt.NDArray[Any] | None = None,
    ) -> None:
        self.path = path
        self._named = named
        self._vector = vector

    @property
    def names_tensors(self) -> bool:
        """False of a vector, which is for one tensor."""
        return self._vector is None

    def has(self, tensor: FloatTensor) -> bool:
        """Whether there are importances of the tensor."""
        return self._vector is not None or tensor.name in self._named

    def of(self, tensor: FloatTensor) -> npt.NDArray[np.float32]:
        """The importances of a tensor.

        Returns:
            float[matrices, n], where matrices is 1 or the tensor's first axis.

        Raises:
            InputError: they do not fit the tensor.
        """
        vector, n = self._vector, tensor.shape[-1]
        found = self._named[tensor.name] if vector is None else vector
        found = found if found.ndim == 2 else found.reshape(1, -1)
        if len(tensor.shape) == 3 and len(found) == 1 and found.size == tensor.shape[0] * n:
            found = found.reshape(tensor.shape[0], n)
        per_matrix = len(tensor.shape) == 3 and len(found) == tensor.shape[0]
        if found.shape[1] != n or not (len(found) == 1 or per_matrix):
            raise pg.InputError(
                f"compare: {self.path}: its importances of {tensor.name!r} are "
                f"float32{list(found.shape)}, for a tensor of shape {list(tensor.shape)}. "
                "Pass those that were collected from this model."
            )
        if not np.isfinite(found).all() or (found < 0).any():
            raise pg.InputError(
                f"compare: {self.path}: its importances of {tensor.name!r} are not all finite and "
                "not negative. Collect them anew."
            )
        return found


def read_importances(path: str) -> Importances:
    """Reads a file of importances: float[n] as .npy, or what llama-imatrix writes, GGUF or .dat.

    Raises:
        FormatError: it is none.
        InputError: the .npy file holds something else than a vector of floats.
        OSError: it cannot be read.
    """
    if Path(path).suffix.lower() == ".npy":
        vector = load_npy(path)
        if vector.dtype.kind != "f" or vector.ndim != 1:
            raise pg.InputError(
                f"compare: {path}: it holds {vector.dtype}{list(vector.shape)}: importances are "
                "float32[n], one for each column."
            )
        return Importances(path, {}, vector=vector)
    return Importances(path, read_imatrix(path).importances)
