"""Quantized arrays, and their way back to numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant_input import READ_IN_PLACE, aligned, checked_out, rows
from phiggml.quant_product import product
from phiggml.quant_type import QuantType
from phiggml.runtime import thread_count


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
        >>> import phiggml as pg
        >>> q = pg.quantize(np.ones((2, 64), np.float32), "Q8_0")
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

    def matmul(self, x: npt.ArrayLike, *, threads: int | None = None) -> Any:
        """Multiplies by vectors of numbers: `q.matmul(x)` and `q @ x` are numpy's matmul(q, x).

        Args:
            x: float[n] or float[..., n, k], of the dtypes and strides that `quantize` takes;
                leading axes are broadcast. Where the rows of x are vectors, x @ q.T is
                (q @ x.T).T, which copies nothing.
            threads: how many to use; None means all cores available to the process.

        Returns:
            float32[..., n_out] or float32[..., n_out, k].

        Raises:
            InputError: x is of another length, not of floats, not finite, or its leading axes do
                not go with those of the array.
            UnsupportedError: a type that ggml has no products for, such as Q8_1; rows longer
                than 2**31 - 1.

        Cost:
            Reads the blocks where they are. x is rounded to what ggml's products take: 8 bits for
            most types, which moves products of normally distributed numbers by 0.5 to 0.7% of
            their root mean square; F32, F16 and BF16 to their own precision. Some 20
            microseconds for a small product. The GIL is released, Ctrl-C seen soon.

        Source:
            ggml_mul_mat on ggml's CPU module. Each vector is first scaled by a power of two, so
            that its magnitude does not matter.

        Example:
            >>> import numpy as np
            >>> import phiggml as pg
            >>> q = pg.quantize(np.eye(32, dtype=np.float32), "Q8_0")
            >>> np.round(q @ np.arange(32, dtype=np.float32))[:4].tolist()
            [0.0, 1.0, 2.0, 3.0]
        """
        return product(self._data, self._type, x, threads=threads)

    def __matmul__(self, x: npt.ArrayLike) -> Any:
        return self.matmul(x)

    def __rmatmul__(self, x: object) -> NoReturn:
        raise InputError(
            "matmul: x @ q would add up numbers of different rows, and blocks lie along rows. For "
            "x @ q.T write (q @ x.T).T; for this, x @ q.dequantize()."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, QuantizedArray) for out in options.get("out", ())):
            return NotImplemented
        if ufunc is np.matmul:
            if options or method != "__call__":
                raise InputError(
                    "matmul: a quantized array goes without out=, dtype= and the like. Use "
                    "q.matmul(x), or dequantize first."
                )
            first, second = inputs
            if not isinstance(first, QuantizedArray):
                return self.__rmatmul__(first)
            return first.matmul(second)
        if method == "at" and isinstance(inputs[0], QuantizedArray):
            return NotImplemented  # it would change a copy
        arrays = [np.asarray(x) if isinstance(x, QuantizedArray) else x for x in inputs]
        if isinstance(options.get("where"), QuantizedArray):
            options["where"] = np.asarray(options["where"])
        return getattr(ufunc, method)(*arrays, **options)

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
        dtype: float32, float16, float64, or bfloat16 of ml_dtypes.
        threads: how many to use; None means all cores available to the process.
        out: an array of the result's shape and `dtype`, C-contiguous, to be filled.

    Returns:
        dtype[..., n].

    Raises:
        InputError: bytes that are not uint8, not contiguous or no whole blocks, raw bytes
            without a type, a dtype that is no float, numbers beyond float16 or bfloat16 where
            that is asked for, an `out` that is misshapen, read-only or overlaps data.

    Cost:
        One pass, nothing beside the result. The GIL is released.

    Source:
        ggml's to_float functions.

    Example:
        >>> import numpy as np
        >>> import phiggml as pg
        >>> q = pg.quantize(np.ones(32, np.float32), "Q8_0")
        >>> round(float(dequantize(q).sum()), 2)
        32.0
    """
    blocks, quant_type = _blocks_and_type(data, type)
    wanted = _float_dtype(dtype)
    n = blocks.shape[-1] // quant_type.block_bytes * quant_type.block_size
    shape = (*blocks.shape[:-1], n)
    if out is not None:
        checked_out(out, shape, wanted, blocks)
    numbers = aligned(shape, wanted) if out is None else np.asarray(out)
    bits = numbers.view(np.uint16) if wanted.name == "bfloat16" else numbers
    _core.quant.dequantize_rows(
        rows(blocks), quant_type.id, n, rows(bits), thread_count(threads, "dequantize")
    )
    return numbers if out is None else out


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


def _float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        wanted = np.dtype(dtype)
    except TypeError as e:
        raise InputError(f"dequantize: {dtype!r} is no dtype. Ask for np.float32.") from e
    if wanted not in READ_IN_PLACE and not (wanted.name == "bfloat16" and wanted.isnative):
        raise InputError(f"dequantize: dtype {wanted} is no float32, float16, bfloat16 or float64.")
    return wanted


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
    return np.asarray(data)[...]


def _blocks_and_type(
    data: QuantizedArray | npt.NDArray[np.uint8], type: str | None
) -> tuple[npt.NDArray[np.uint8], QuantType]:
    if isinstance(data, QuantizedArray):
        if type is not None and QuantType(type) != data.type:
            raise InputError(f"dequantize: data is {data.type}, not {type}. Leave type out.")
        quant_type = data.type
    elif type is None:
        raise InputError("dequantize: raw bytes do not say their type. Pass type=.")
    else:
        quant_type = QuantType(type)
    if not quant_type.can_dequantize:
        raise InputError(f"dequantize: {quant_type} cannot be turned into floats here.")
    if isinstance(data, QuantizedArray):
        return data.data, quant_type
    return _blocks(data, quant_type, "dequantize"), quant_type
