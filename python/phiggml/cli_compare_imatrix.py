"""The importances of columns that --imatrix names: one vector, or those of a model's tensors.

Source: what llama.cpp b11549 writes (tools/imatrix) and reads (tools/quantize): for each tensor
the sums of squared inputs, float32[matrices, n] as NAME.in_sum2, and how many went into them,
float32[matrices, 1] as NAME.counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.cli_compare_source import FloatTensor, load_npy

__all__ = ["Importances", "read_importances"]

_SUMS, _COUNTS = ".in_sum2", ".counts"


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
    """Reads a file of importances: float[n] as .npy, or what llama-imatrix writes as GGUF.

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
    with pg.GGUFFile(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise pg.FormatError(
                f"compare: {path}: it is no importance matrix: general.type is not 'imatrix'. "
                "Make one with llama-imatrix.",
                path=path,
            )
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        return Importances(path, {name: _means(file, name) for name in names})


def _means(file: pg.GGUFFile, name: str) -> npt.NDArray[np.float32]:
    sums, counts = file.tensors[name + _SUMS], file.tensors.get(name + _COUNTS)
    sound = counts is not None and (sums.type, counts.type) == ("F32", "F32")
    if counts is None or not sound or len(sums.shape) != 2 or counts.shape != (sums.shape[0], 1):
        raise pg.FormatError(
            f"compare: {file.path}: importances of {name!r}: {_SUMS} must be float32[matrices, n] "
            f"and {_COUNTS} float32[matrices, 1].",
            path=file.path,
        )
    values = sums.read_rows().view("<f4").astype(np.float32)
    seen = counts.read_rows().view("<f4").astype(np.float32)
    # A matrix that no input went through is of equal importance everywhere. Counts that are no
    # counts make what `of` refuses.
    with np.errstate(all="ignore"):
        return np.where(seen == 0, np.float32(1), values / seen)
