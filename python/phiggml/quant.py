"""Arrays to and from ggml's quantized blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant_type import QuantType, quant_types
from phiggml.runtime import thread_count

__all__ = [
    "QuantType",
    "QuantizationError",
    "QuantizedArray",
    "dequantize",
    "quant_types",
    "quantization_error",
    "quantize",
]


class QuantizedArray:
    """An array held in quantized blocks along its last axis.

    Args:
        data: uint8[..., row_bytes], C-contiguous; kept, not copied.
        type: the quant type of the blocks.

    Attributes:
        data: uint8[..., row_bytes], read-only.
        type: QuantType.
        shape: of the numbers, in numpy order.
        nbytes: bytes of `data`.
        bits_per_weight: of the type.

    Raises:
        InputError: `data` is not uint8, not contiguous, or its rows are no whole blocks.

    Example:
        >>> import numpy as np
        >>> q = quantize(np.ones((2, 64), np.float32), "Q8_0")
        >>> q.shape, q.nbytes, q[0].shape
        ((2, 64), 136, (64,))
    """

    __slots__ = ("_data", "_type")

    def __init__(self, data: npt.NDArray[np.uint8], type: str) -> None:
        self._type = QuantType(type)
        self._data = _blocks(data, self._type, "QuantizedArray")
        self._data.flags.writeable = False

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._data

    @property
    def type(self) -> QuantType:
        return self._type

    @property
    def shape(self) -> tuple[int, ...]:
        n = self._data.shape[-1] // self._type.block_bytes * self._type.block_size
        return (*self._data.shape[:-1], n)

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    @property
    def bits_per_weight(self) -> float:
        return self._type.bits_per_weight

    def dequantize(
        self, *, dtype: npt.DTypeLike = np.float32, threads: int | None = None
    ) -> npt.NDArray[Any]:
        """Turns the blocks back into numbers, as `phiggml.dequantize` does.

        Args:
            dtype, threads: as for `dequantize`.

        Returns:
            dtype[..., n], a copy.

        Raises:
            InputError: as `dequantize`.
        """
        return dequantize(self, dtype=dtype, threads=threads)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("QuantizedArray: its numbers exist only as a copy; copy=False fails.")
        return self.dequantize(dtype=np.float32 if dtype is None else dtype)

    def __getitem__(self, key: Any) -> QuantizedArray:
        index = _leading_index(key if isinstance(key, tuple) else (key,), self._data.ndim)
        return QuantizedArray(np.ascontiguousarray(self._data[index]), self._type)

    def __len__(self) -> int:
        if self._data.ndim < 2:
            raise TypeError("QuantizedArray: one axis of packed blocks has no length.")
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedArray):
            return NotImplemented
        return self._type == other._type and np.array_equal(self._data, other._data)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Callable[..., QuantizedArray], tuple[npt.NDArray[np.uint8], str]]:
        return QuantizedArray, (self._data, str(self._type))

    def __repr__(self) -> str:
        return f"QuantizedArray(shape={self.shape}, type={str(self._type)!r}, nbytes={self.nbytes})"


@dataclass(frozen=True)
class QuantizationError:
    """How far an array moves when it is quantized.

    Attributes:
        rmse: root of the mean squared difference.
        nrmse: rmse divided by the root mean square of the array (0 for an array of zeros that
            stays so).
        max_abs: the greatest difference.
        cosine: cosine of the angle between the array and its quantized self.
        bits_per_weight: of the type.
    """

    rmse: float
    nrmse: float
    max_abs: float
    cosine: float
    bits_per_weight: float


def quantize(
    x: npt.ArrayLike,
    type: str,
    *,
    imatrix: npt.ArrayLike | None = None,
    threads: int | None = None,
    out: npt.NDArray[np.uint8] | None = None,
    nonfinite: Literal["error", "allow"] = "error",
) -> QuantizedArray:
    """Quantizes an array along its last axis.

    Args:
        x: float[..., n] of float32, float16, float64 or bfloat16 (ml_dtypes), any strides and
            byte order.
        type: a name from `quant_types()`, any case.
        imatrix: float32[n], the importance of each column: finite, not negative.
        threads: how many to use; None means all cores available to the process.
        out: uint8[..., row_bytes], C-contiguous, to be filled and kept by the result.
        nonfinite: "error" refuses NaN and infinity; "allow" lets ggml make of them what it does
            (the blocks that hold them are lost; IQ1, IQ2 and IQ3 types refuse them always).

    Returns:
        QuantizedArray of x's shape.

    Raises:
        InputError: integers, no axes, a last axis that is no multiple of the block, non-finite
            values, values or importances beyond the type, an imatrix that is missing, misshapen
            or negative, an `out` that is misshapen, read-only or overlaps x or imatrix.

    Cost:
        x is copied once unless it is float32 and C-contiguous. The GIL is released, Ctrl-C seen
        soon. The first use of an IQ1, IQ2 or IQ3 type builds ggml's tables: up to some seconds.

    Source:
        ggml_quantize_chunk; the bytes are its own.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
        >>> quantize(x, "Q4_K").bits_per_weight
        4.5
    """
    quant_type = _quantizable(type, "quantize")
    _check_nonfinite(nonfinite)
    values = _floats(x, "quantize")
    importances = _importances(imatrix, values.shape[-1], quant_type, "quantize")
    shape = (*values.shape[:-1], quant_type.row_bytes(values.shape[-1]))
    if out is not None:
        _checked_out(out, shape, np.uint8, values, x, importances)
    data = np.empty(shape, np.uint8) if out is None else out.view()
    _core.quant.quantize_rows(
        _rows(values),
        quant_type.id,
        _rows(data),
        importances,
        thread_count(threads, "quantize"),
        nonfinite == "allow",
    )
    return QuantizedArray(data, quant_type)


def dequantize(
    data: QuantizedArray | npt.NDArray[np.uint8],
    type: str | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Turns quantized blocks back into numbers.

    Args:
        data: a QuantizedArray, or uint8[..., row_bytes], C-contiguous, together with `type`.
        type: the quant type of raw bytes.
        dtype: float32, float16 or float64.
        threads: how many to use; None means all cores available to the process.
        out: an array of the result's shape and `dtype`, C-contiguous, to be filled.

    Returns:
        dtype[..., n].

    Raises:
        InputError: bytes that are not uint8, not contiguous or no whole blocks, raw bytes
            without a type, a dtype that is no float, numbers beyond float16 where that is asked
            for, an `out` that is misshapen, read-only or overlaps data.

    Cost:
        One pass; a second one for another dtype than float32. The GIL is released.

    Source:
        ggml's to_float functions.

    Example:
        >>> import numpy as np
        >>> q = quantize(np.ones(32, np.float32), "Q8_0")
        >>> round(float(dequantize(q).sum()), 2)
        32.0
    """
    blocks, quant_type = _blocks_and_type(data, type)
    wanted = _float_dtype(dtype)
    n = blocks.shape[-1] // quant_type.block_bytes * quant_type.block_size
    shape = (*blocks.shape[:-1], n)
    if out is not None:
        _checked_out(out, shape, wanted, blocks)
    direct = out is not None and wanted == np.float32
    numbers = out if direct and out is not None else np.empty(shape, np.float32)
    _core.quant.dequantize_rows(
        _rows(blocks), quant_type.id, n, _rows(numbers), thread_count(threads, "dequantize")
    )
    if direct:
        return numbers
    with np.errstate(over="ignore", under="ignore"):
        result = numbers.astype(wanted, copy=False)
    if wanted == np.float16 and not np.array_equal(np.isfinite(result), np.isfinite(numbers)):
        raise InputError("dequantize: numbers are beyond float16. Ask for dtype=np.float32.")
    if out is not None:
        np.copyto(out, result)
        return out
    return result


def quantization_error(
    x: npt.ArrayLike,
    type: str,
    *,
    imatrix: npt.ArrayLike | None = None,
    threads: int | None = None,
) -> QuantizationError:
    """Measures what quantizing an array would do to it.

    Args:
        x, type, imatrix, threads: as for `quantize`.

    Returns:
        QuantizationError; its sums are taken in float64.

    Raises:
        InputError: as `quantize`, and for an array without elements.

    Cost:
        Quantizes and dequantizes piece by piece; keeps neither result. The GIL is released.

    Source:
        The functions behind `quantize` and `dequantize`.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 256, dtype=np.float32)
        >>> quantization_error(x, "Q8_0").nrmse < 0.01
        True
    """
    quant_type = _quantizable(type, "quantization_error")
    values = _floats(x, "quantization_error")
    if values.size == 0:
        raise InputError("quantization_error: x has no elements, so there is no error to measure.")
    quant_type.row_bytes(values.shape[-1])
    sums = _core.quant.error_sums(
        _rows(values),
        quant_type.id,
        _importances(imatrix, values.shape[-1], quant_type, "quantization_error"),
        thread_count(threads, "quantization_error"),
    )
    rms = math.sqrt(sums["squared_value"] / values.size)
    rmse = math.sqrt(sums["squared_error"] / values.size)
    lengths = math.sqrt(sums["squared_value"]) * math.sqrt(sums["squared_result"])
    still = 0.0 if rmse == 0 else math.inf
    return QuantizationError(
        rmse=rmse,
        nrmse=rmse / rms if rms > 0 else still,
        max_abs=sums["max_abs"],
        cosine=sums["product"] / lengths if lengths > 0 else float(rmse == 0),
        bits_per_weight=quant_type.bits_per_weight,
    )


def _leading_index(keys: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """The keys spelt out for `ndim` axes, the last of which they must leave whole."""
    # A mask takes as many axes as it has, None takes none.
    masks = [np.asarray(k) for k in keys if isinstance(k, (list, bool, np.bool_, np.ndarray))]
    n_taken = sum(k is not None and k is not Ellipsis for k in keys)
    n_taken += sum(mask.ndim - 1 for mask in masks if mask.dtype == bool)
    if not any(k is Ellipsis for k in keys):
        keys = (*keys, Ellipsis)
    at = next(i for i, k in enumerate(keys) if k is Ellipsis)
    index = (*keys[:at], *(slice(None),) * (ndim - n_taken), *keys[at + 1 :])
    if not isinstance(index[-1], slice) or index[-1] != slice(None) or n_taken > ndim:
        raise InputError(
            f"QuantizedArray: an index may select on the {ndim - 1} leading axes only; along "
            "the last axis numbers are packed in blocks. Dequantize first."
        )
    return index


def _quantizable(type: str, operation: str) -> QuantType:
    quant_type = QuantType(type)
    if not quant_type.can_quantize:
        raise InputError(
            f"{operation}: {quant_type} is no target of quantization. "
            f"Those are: {', '.join(quant_types())}."
        )
    return quant_type


def _check_nonfinite(nonfinite: str) -> None:
    if nonfinite not in ("error", "allow"):
        raise InputError(f'quantize: nonfinite is {nonfinite!r}: it must be "error" or "allow".')


def _floats(x: npt.ArrayLike, operation: str) -> npt.NDArray[np.float32]:
    """x as float32, C-contiguous, native byte order; x itself where it is that already."""
    array = _array(x, f"{operation}: x")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(
            f"{operation}: x is of dtype {array.dtype}: only float arrays are quantized. "
            "Convert it with x.astype(np.float32)."
        )
    if array.ndim == 0:
        raise InputError(f"{operation}: x has no axes: quantizing goes along the last of them.")
    with np.errstate(over="ignore", under="ignore"):
        values = np.require(array, np.float32, ["C", "A"])
    narrowed = array.dtype.itemsize > 4 and array.dtype.kind == "f"
    if narrowed and not np.array_equal(np.isfinite(values), np.isfinite(array)):
        raise InputError(f"{operation}: x holds values beyond float32. Scale it down.")
    return values


def _array(x: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(x)
    except ValueError as e:
        raise InputError(f"{what} is no array: {e}") from e


def _float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        wanted = np.dtype(dtype)
    except TypeError as e:
        raise InputError(f"dequantize: {dtype!r} is no dtype. Ask for np.float32.") from e
    if wanted not in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)):
        raise InputError(f"dequantize: dtype {wanted} is no float32, float16 or float64.")
    return wanted


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as (rows, columns), without a copy."""
    rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    assert rows.size == 0 or np.shares_memory(rows, array)
    return rows


def _importances(
    imatrix: npt.ArrayLike | None, n: int, quant_type: QuantType, operation: str
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


def _blocks(data: npt.NDArray[np.uint8], quant_type: QuantType, operation: str) -> npt.NDArray[Any]:
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        found = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(f"{operation}: data is {found}: quantized bytes are a uint8 array.")
    if data.ndim == 0 or data.shape[-1] % quant_type.block_bytes:
        raise InputError(
            f"{operation}: rows of shape {data.shape} are no whole blocks of {quant_type}, "
            f"which have {quant_type.block_bytes} bytes each."
        )
    if not data.flags.c_contiguous:
        raise InputError(f"{operation}: data is not C-contiguous. Pass np.ascontiguousarray(data).")
    return data[...]


def _blocks_and_type(
    data: QuantizedArray | npt.NDArray[np.uint8], type: str | None
) -> tuple[npt.NDArray[np.uint8], QuantType]:
    if isinstance(data, QuantizedArray):
        if type is not None and QuantType(type) != data.type:
            raise InputError(f"dequantize: data is {data.type}, not {type}. Leave type out.")
        return data.data, data.type
    if type is None:
        raise InputError("dequantize: raw bytes do not say their type. Pass type=.")
    quant_type = QuantType(type)
    if not quant_type.can_dequantize:
        raise InputError(f"dequantize: {quant_type} cannot be turned into floats here.")
    return _blocks(data, quant_type, "dequantize"), quant_type


def _checked_out(
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
