"""The data of a tensor in pieces of bounded size, as blocks and as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.quant_type import QuantType

if TYPE_CHECKING:
    from phiggml.gguf import GGUFTensor

__all__ = [
    "PLAIN_DTYPES",
    "blocks_in_pieces",
    "has_numbers",
    "numbers",
    "numbers_dtype",
    "piece_bounds",
]

# Types whose data are numbers that numpy has a dtype for, and that nobody quantizes.
PLAIN_DTYPES = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}

# A multiple of every block: few enough for some float64 copies of a piece, enough for all threads.
_MOST_NUMBERS = 1 << 20


def piece_bounds(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of a tensor's numbers: whole rows, or parts of rows that are very long.

    They depend on the shape alone, so that two tensors of one shape are cut alike.
    """
    count = math.prod(shape)
    row = shape[-1] if shape else 1
    unit = row * (_MOST_NUMBERS // row) if row <= _MOST_NUMBERS else row
    for first in range(0, count, unit):
        last = min(first + unit, count)
        for start in range(first, last, _MOST_NUMBERS):
            yield start, min(start + _MOST_NUMBERS, last)


def blocks_in_pieces(tensor: GGUFTensor) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The data of a tensor, piece by piece.

    Yields:
        The index of the piece's first block, counted over the whole tensor, and
        uint8[n_blocks, block_bytes], C-contiguous.

    Raises:
        FormatError: the file has become shorter since it was opened.
        OSError: it cannot be read.

    Cost:
        Each piece is copied from the file; should it become shorter, no mapping is touched.
    """
    size, nbytes = tensor.type.block_size, tensor.type.block_bytes
    for start, stop in piece_bounds(tensor.shape):
        data = tensor.read_bytes(start // size * nbytes, stop // size * nbytes)
        yield start // size, data.reshape(-1, nbytes)


def numbers_dtype(type: QuantType) -> np.dtype[Any] | None:
    """What `numbers` gives of a type: float32, or an integer's or float64's own; None for none."""
    if type.can_dequantize:
        return np.dtype(np.float32)
    plain = PLAIN_DTYPES.get(type)
    return None if plain is None else np.dtype(plain)


def has_numbers(type: QuantType) -> bool:
    """Whether `numbers` takes the type."""
    return numbers_dtype(type) is not None


def numbers(blocks: npt.NDArray[np.uint8], type: QuantType, threads: int) -> npt.NDArray[Any]:
    """Turns blocks into numbers.

    Args:
        blocks: uint8[n_blocks, block_bytes], C-contiguous.
        type: theirs; see has_numbers.
        threads: how many to use.

    Returns:
        numbers_dtype(type)[n_blocks, block_size].
    """
    dtype = numbers_dtype(type)
    assert dtype is not None
    if not type.can_dequantize:
        return blocks.view(dtype)
    out = np.empty((len(blocks), type.block_size), dtype)
    _core.quant.dequantize_rows(blocks, type.id, type.block_size, out, threads)
    return out
