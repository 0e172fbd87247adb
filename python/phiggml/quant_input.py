"""Arrays on their way into the kernels, and the memory that results are written to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant_type import QuantType

# What is read in place, whatever its strides; other floats are copied into one of these.
READ_IN_PLACE = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64))
_CACHE_LINE = 64
_HOST_MEMORY = (1, 3)  # DLPack: CPU, and host memory that CUDA has pinned


def numbers(x: Any, operation: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """x as the kernels read it, any strides (uint16 holds bfloat16's bits), and as an array."""
    array, bfloat16 = (
        _tensor(x, operation) if _is_tensor(x) else (_array(x, f"{operation}: x"), False)
    )
    bfloat16 = bfloat16 or array.dtype.name == "bfloat16"
    if not bfloat16 and (array.dtype.kind != "f" or array.dtype.itemsize < 2):
        raise InputError(
            f"{operation}: x is of dtype {array.dtype}: only float arrays are taken. "
            "Convert it with x.astype(np.float32)."
        )
    if array.ndim == 0:
        raise InputError(f"{operation}: x has no axes: it needs at least one.")
    if bfloat16:
        native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        return native.view(np.uint16), array
    if array.dtype in READ_IN_PLACE:
        return array, array
    with np.errstate(over="ignore", under="ignore"):
        values = array.astype(
            np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        )
    if array.dtype.itemsize > 8 and not np.array_equal(np.isfinite(values), np.isfinite(array)):
        raise InputError(f"{operation}: x holds values beyond float32. Scale it down.")
    return values, array


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "__dlpack__") and not isinstance(x, (np.ndarray, np.generic))


def _tensor(x: Any, operation: str) -> tuple[npt.NDArray[Any], bool]:
    """The numbers of another library's tensor, in place, and whether they are bfloat16's bits."""
    try:
        device = x.__dlpack_device__()
        kind = int(device[0])
        if kind in _HOST_MEMORY:
            return _core.quant.from_dlpack(x.__dlpack__())
    except InputError:
        raise
    except (AttributeError, BufferError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = str(e).rstrip(".")
        raise InputError(
            f"{operation}: x cannot be read in place: {reason}. Pass a numpy array."
        ) from e
    raise InputError(
        f"{operation}: x lies in the memory of a device (DLPack type {kind}). Move it to the CPU "
        "first, with x.cpu() in torch."
    )


def _array(x: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    if np.ma.is_masked(x):
        raise InputError(f"{what} has masked numbers, and blocks have no mask. Pass x.filled(0).")
    try:
        return np.asarray(x)
    except ValueError as e:
        raise InputError(f"{what} is no array: {e}") from e


def importances(
    imatrix: npt.ArrayLike | None, n: int, *, quant_type: QuantType, operation: str
) -> npt.NDArray[np.float32] | None:
    if imatrix is None:
        return None
    array = _array(imatrix, f"{operation}: imatrix")
    if array.dtype.kind != "f" or array.shape != (n,):
        raise InputError(
            f"{operation}: imatrix is {array.dtype}{list(array.shape)}: for {quant_type} it must "
            f"be float32[{n}], one importance for each column of x."
        )
    with np.errstate(over="ignore", under="ignore"):
        return np.require(array, np.float32, ["C", "A"])


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array, not cleared, that begins where a cache line does."""
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        memory = np.empty(nbytes + _CACHE_LINE, np.uint8)
        begin = -memory.ctypes.data % _CACHE_LINE
        return memory[begin : begin + nbytes].view(dtype).reshape(shape)
    except ValueError as e:  # more than numpy counts
        raise MemoryError(f"an array of {dtype}{list(shape)}: {e}") from e


def rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as (rows, columns), without a copy."""
    rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    assert rows.size == 0 or np.shares_memory(rows, array)
    return rows


def checked_out(
    out: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike, *sources: Any
) -> None:
    wanted = np.dtype(dtype)
    if not isinstance(out, np.ndarray) or out.dtype != wanted or out.shape != shape:
        found = f"{out.dtype}{list(out.shape)}" if isinstance(out, np.ndarray) else repr(out)
        raise InputError(f"out: it is {found}; it must be {wanted}{list(shape)}.")
    if not out.flags.carray:
        raise InputError("out: it must be C-contiguous, aligned and writable.")
    for source in sources:
        if isinstance(source, np.ndarray) and np.may_share_memory(out, source):
            raise InputError("out: it overlaps the input. Pass an array of its own.")
