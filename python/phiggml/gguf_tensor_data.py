"""Which arrays can be written to a GGUF file as which tensor type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError
from phiggml.quant import QuantType, quantize

__all__ = ["checked_shape", "little_endian_pieces", "tensor_data"]

_MAX_DIMS = 4
_PIECE_BYTES = 8 << 20

# Arrays that become tensors as they are. ml_dtypes registers bfloat16 by this name.
_TYPE_OF_DTYPE = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
}
_QUANTIZABLE_DTYPES = ("float32", "float16", "bfloat16", "float64")


def checked_shape(shape: tuple[int, ...], tensor_type: QuantType, what: str) -> tuple[int, ...]:
    """The shape as Python ints, once a tensor of the type can have it."""
    if not 1 <= len(shape) <= _MAX_DIMS:
        raise InputError(f"{what}: it has {len(shape)} axes: a tensor has 1 to {_MAX_DIMS}.")
    if not all(isinstance(size, int | np.integer) and size >= 1 for size in shape):
        raise InputError(f"{what}: its shape {shape} must be of integers of at least 1.")
    sizes = tuple(int(size) for size in shape)
    if sizes[-1] % tensor_type.block_size != 0:
        raise InputError(
            f"{what}: its last axis has {sizes[-1]} elements, no multiple of "
            f"{tensor_type.block_size}, the block of {tensor_type.name}."
        )
    if math.prod(sizes) * tensor_type.block_bytes >= 1 << 62:
        raise InputError(f"{what}: a tensor of shape {sizes} is larger than any file.")
    return sizes


def tensor_data(
    array: npt.NDArray[Any], type: str | None, what: str
) -> tuple[npt.NDArray[Any], QuantType, tuple[int, ...]]:
    """What to write of an array, its tensor type, and the tensor's shape."""
    native = _TYPE_OF_DTYPE.get(array.dtype.name)
    if type is None:
        if native is None:
            raise InputError(
                f"{what}: dtype {array.dtype} has no tensor type of its own. "
                "Convert it, or pass `type` with raw bytes."
            )
        return array, QuantType(native), array.shape
    tensor_type = QuantType(type)
    if native == tensor_type.name:
        return array, tensor_type, array.shape
    if array.dtype.name == "uint16" and tensor_type.name == "BF16":
        return array, tensor_type, array.shape
    if array.dtype.name == "uint8":
        return array, tensor_type, _shape_of_bytes(array, tensor_type, what)
    if array.dtype.name not in _QUANTIZABLE_DTYPES:
        raise InputError(f"{what}: an array of {array.dtype} cannot become {tensor_type.name}.")
    if tensor_type.name == "F64":
        return array.astype(np.float64), tensor_type, array.shape
    checked_shape(array.shape, tensor_type, what)
    quantized = quantize(array, tensor_type)
    return quantized.data, tensor_type, quantized.shape


def _shape_of_bytes(
    array: npt.NDArray[np.uint8], tensor_type: QuantType, what: str
) -> tuple[int, ...]:
    if array.ndim == 0 or array.shape[-1] % tensor_type.block_bytes != 0:
        raise InputError(
            f"{what}: uint8 of shape {array.shape}: rows of {tensor_type.name} have a multiple of "
            f"{tensor_type.block_bytes} bytes."
        )
    if not array.flags.c_contiguous:
        raise InputError(
            f"{what}: quantized bytes must be C-contiguous. Pass np.ascontiguousarray(...)."
        )
    return (*array.shape[:-1], array.shape[-1] // tensor_type.block_bytes * tensor_type.block_size)


def little_endian_pieces(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The array in the layout of the file: itself when it has that already, else bounded copies."""
    swapped = array.dtype.byteorder != "|" and array.dtype.newbyteorder("<") != array.dtype
    dtype = array.dtype.newbyteorder("<") if swapped else array.dtype
    if not swapped and array.flags.c_contiguous:
        yield array
    elif array.nbytes <= _PIECE_BYTES:
        yield np.ascontiguousarray(array, dtype)
    elif array[0].nbytes > _PIECE_BYTES:
        for part in array:
            yield from little_endian_pieces(part)
    else:
        step = _PIECE_BYTES // array[0].nbytes
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step], dtype)
