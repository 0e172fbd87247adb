"""The float tensors of a file that types are compared on: GGUF, .npy and .safetensors."""

from __future__ import annotations

import math
import tokenize
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.conversion.safetensors import SafetensorsFile, StoredTensor
from phiggml.gguf_piece import PLAIN_DTYPES

__all__ = ["ComparedSource", "FloatTensor", "load_npy", "open_source"]

_SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class FloatTensor:
    """A tensor of float numbers, which are read when they are asked for.

    Attributes:
        name: in its file; of a .npy file, the file's own.
        shape: in numpy order.
        type: of the numbers in the file, as the file's format calls it.
        quantized: whether the file holds it in quantized blocks.
        read: threads -> its numbers, float[shape], a copy.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    quantized: bool
    read: Callable[[int | None], npt.NDArray[Any]]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ComparedSource:
    """A file of tensors.

    Attributes:
        path: the file.
        tensors: by name, those that hold float numbers.
        left_out: name -> why, of the other ones.
    """

    path: str
    tensors: Mapping[str, FloatTensor]
    left_out: Mapping[str, str]


def open_source(path: str, files: ExitStack) -> ComparedSource:
    """Opens a file: .npy and .safetensors by their names, everything else as GGUF.

    Args:
        path: the file; of GGUF also any part of a split model, or a URL.
        files: what keeps it open, and closes it.

    Raises:
        FormatError: the file is not what its name says.
        OSError: it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        return _npy(path)
    if suffix == ".safetensors":
        return _safetensors(path, files)
    return _gguf(path, files)


def load_npy(path: str) -> npt.NDArray[Any]:
    """Reads a .npy file, whole, after a look at whether its bytes are there.

    Raises:
        FormatError: it is no .npy file, shorter than it says, or holds Python objects.
        OSError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes beyond 2**63, and of Python 2's headers
            np.lib.format.open_memmap(path, mode="r")
            return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OverflowError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise pg.FormatError(
            f"compare: {path}: it is no .npy file: {str(error).rstrip('.')}.", path=path
        ) from error


def _collected(
    path: str, found: Mapping[str, FloatTensor], left_out: Mapping[str, str]
) -> ComparedSource:
    kept = {name: tensor for name, tensor in found.items() if tensor.shape and tensor.count}
    hollow = {
        name: "without elements" if tensor.shape else "without axes"
        for name, tensor in found.items()
        if name not in kept
    }
    return ComparedSource(path, kept, {**left_out, **hollow})


def _npy(path: str) -> ComparedSource:
    array = load_npy(path)
    name = Path(path).name
    if array.dtype.kind != "f":
        return ComparedSource(path, {}, {name: f"of {array.dtype}, no float type"})
    dtype = array.dtype.name
    tensor = FloatTensor(name, array.shape, dtype, quantized=False, read=lambda _: array)
    return _collected(path, {name: tensor}, {})


def _safetensors(path: str, files: ExitStack) -> ComparedSource:
    file = SafetensorsFile(Path(path))
    files.callback(file.close)
    found, left_out = {}, {}
    for name, stored in file.tensors.items():
        if stored.dtype == "BF16" or stored.dtype in _SAFETENSORS_DTYPES:
            found[name] = _stored_tensor(file, stored)
        else:
            left_out[name] = f"of {stored.dtype}, which is not read"
    return _collected(path, found, left_out)


def _stored_tensor(file: SafetensorsFile, stored: StoredTensor) -> FloatTensor:
    def read(threads: int | None) -> npt.NDArray[Any]:
        data = file.data(stored)
        if stored.dtype == "BF16":
            return pg.dequantize(data, "BF16", threads=threads).reshape(stored.shape)
        return data.view(_SAFETENSORS_DTYPES[stored.dtype]).reshape(stored.shape)

    return FloatTensor(stored.name, stored.shape, stored.dtype, quantized=False, read=read)


def _gguf(path: str, files: ExitStack) -> ComparedSource:
    file = files.enter_context(pg.GGUFFile(path))
    found, left_out = {}, {}
    for name, tensor in file.tensors.items():
        if tensor.type.can_dequantize or tensor.type == "F64":
            found[name] = _gguf_tensor(tensor)
        else:
            left_out[name] = f"of {tensor.type}, no float type"
    return _collected(path, found, left_out)


def _gguf_tensor(tensor: pg.GGUFTensor) -> FloatTensor:
    def read(threads: int | None) -> npt.NDArray[Any]:
        # Copied, not mapped: who truncates the file meanwhile does not end the process.
        rows = tensor.read_rows()
        if tensor.type == "F64":
            return rows.view(PLAIN_DTYPES["F64"]).reshape(tensor.shape)
        return pg.dequantize(rows, tensor.type, threads=threads).reshape(tensor.shape)

    return FloatTensor(
        tensor.name,
        tensor.shape,
        str(tensor.type),
        quantized=tensor.type.block_size > 1,
        read=read,
    )
