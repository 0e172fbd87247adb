"""Products of quantized arrays with arrays of numbers, shaped as those of numpy's matmul."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant_input import aligned, numbers, rows
from phiggml.quant_type import QuantType
from phiggml.runtime import load_backends, thread_count


def product(
    blocks: npt.NDArray[np.uint8], quant_type: QuantType, x: Any, *, threads: int | None
) -> Any:
    """float32[..., n_out] or [..., n_out, k] of blocks [..., n_out, n] and x [n] or [..., n, k]."""
    n = blocks.shape[-1] // quant_type.block_bytes * quant_type.block_size
    values, _ = numbers(x, "matmul")
    if values.shape[-2:][0] != n:
        raise InputError(
            f"matmul: x has the shape {values.shape}: with rows of {n} it must be ({n},) or "
            f"(..., {n}, k). Where the rows of x are vectors, write (q @ x.T).T."
        )
    n_threads = thread_count(threads, "matmul")
    load_backends()
    if values.ndim == 1:
        products = _products(values[None], rows(blocks), quant_type, n_threads)
        return products.reshape(blocks.shape[:-1])[()]
    # ggml wants each vector in one piece, and gives the products with it in one piece.
    vectors = values.swapaxes(-1, -2)
    matrices = blocks[None] if blocks.ndim == 1 else blocks
    if matrices.ndim == 2:
        products = _products(vectors, matrices, quant_type, n_threads)
    else:
        products = _products_one_by_one(vectors, matrices, quant_type, n_threads)
    return products[..., 0] if blocks.ndim == 1 else products.swapaxes(-1, -2)


def _products(
    vectors: npt.NDArray[Any],
    matrix: npt.NDArray[np.uint8],
    quant_type: QuantType,
    threads: int,
) -> npt.NDArray[np.float32]:
    """float32[..., k, n_out] of vectors [..., k, n] and a matrix [n_out, row_bytes]."""
    out = aligned((*vectors.shape[:-1], len(matrix)), np.dtype(np.float32))
    _core.quant.multiply_rows(vectors, matrix, quant_type.id, vectors.shape[-1], rows(out), threads)
    return out


def _products_one_by_one(
    vectors: npt.NDArray[Any],
    matrices: npt.NDArray[np.uint8],
    quant_type: QuantType,
    threads: int,
) -> npt.NDArray[np.float32]:
    """float32[..., k, n_out] of vectors [..., k, n] and matrices [..., n_out, row_bytes]."""
    try:
        leading = np.broadcast_shapes(vectors.shape[:-2], matrices.shape[:-2])
    except (RuntimeError, ValueError) as e:  # numpy's limit of axes, or no common shape
        raise InputError(
            f"matmul: the leading axes of x, {vectors.shape[:-2]}, do not go with those of the "
            f"quantized array, {matrices.shape[:-2]}."
        ) from e
    every_vector = np.broadcast_to(vectors, (*leading, *vectors.shape[-2:]))
    every_matrix = np.broadcast_to(matrices, (*leading, *matrices.shape[-2:]))
    out = aligned((*leading, vectors.shape[-2], matrices.shape[-2]), np.dtype(np.float32))
    for i in np.ndindex(leading):
        out[i] = _products(every_vector[i], every_matrix[i], quant_type, threads)
    return out
