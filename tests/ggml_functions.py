"""ggml's own functions on arrays, called by ctypes past our code."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phiggml.runtime import library_folder


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    )


@cache
def ggml() -> ctypes.CDLL:
    """The ggml library that the package was built with, called past our code."""
    return open_ggml(library_folder() / "libphiggml-ggml-base.so")


def open_ggml(path: Path) -> ctypes.CDLL:
    """A libggml-base; its functions know their arguments."""
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, i64]
    return library


def ggml_quantize(
    x: npt.NDArray[np.float32], type_id: int, imatrix: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    assert x.flags.c_contiguous and x.dtype == np.float32
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    out = np.zeros((*x.shape[:-1], ggml().ggml_row_size(type_id, n)), np.uint8)
    ggml().ggml_quantize_init(type_id)
    weights = None if imatrix is None else imatrix.ctypes.data
    written = ggml().ggml_quantize_chunk(
        type_id, x.ctypes.data, out.ctypes.data, 0, n_rows, n, weights
    )
    assert written == out.nbytes
    return out


def ggml_dequantize(data: npt.NDArray[np.uint8], type_id: int) -> npt.NDArray[np.float32]:
    """float32[n] of blocks in a row, by the type's to_float."""
    traits = ggml().ggml_get_type_traits(type_id).contents
    assert data.flags.c_contiguous and data.size % traits.block_bytes == 0
    out = np.empty(data.size // traits.block_bytes * traits.block_size, np.float32)
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
