"""Arrays to and from ggml's quantized blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant_array import QuantizedArray, dequantize
from phiggml.quant_input import aligned, checked_out, importances, numbers, rows
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
        x: float[..., n] of float32, float16, bfloat16 (ml_dtypes) or float64, any strides and
            byte order; or a tensor of these in the CPU's memory, of any library that speaks
            DLPack (torch, jax).
        type: a name from `quant_types()`, any case.
        imatrix: float32[n], the importance of each column: finite, not negative.
        threads: how many to use; None means all cores available to the process.
        out: uint8[..., row_bytes], C-contiguous, to be filled and kept by the result.
        nonfinite: "error" refuses NaN and infinity; "allow" lets ggml make of them what it does
            (the blocks that hold them are lost; IQ1, IQ2 and IQ3 types refuse them always).

    Returns:
        QuantizedArray of x's shape.

    Raises:
        InputError: integers, masked numbers, no axes, a last axis that is no multiple of the
            block, non-finite values, values or importances beyond the type, an imatrix that is
            missing, misshapen or negative, an `out` that is misshapen, read-only or overlaps x or
            imatrix.

    Cost:
        x is read in place, whatever its dtype and strides (of foreign byte order or of more than
        64 bits it is copied), by the kernels of AVX2 or AVX-512 where the CPU has them;
        PHIGGML_CPU_VARIANT forces others. The GIL is released, Ctrl-C seen soon. The first use
        of an IQ1, IQ2 or IQ3 type builds ggml's tables: up to some seconds.

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
    values, array = numbers(x, "quantize")
    weights = importances(imatrix, values.shape[-1], quant_type=quant_type, operation="quantize")
    shape = (*values.shape[:-1], quant_type.row_bytes(values.shape[-1]))
    if out is not None:
        checked_out(out, shape, np.uint8, values, array, weights)
    data = aligned(shape, np.dtype(np.uint8)) if out is None else np.asarray(out)
    n_threads, allow = thread_count(threads, "quantize"), nonfinite == "allow"
    _core.quant.quantize_rows(values, quant_type.id, rows(data), weights, n_threads, allow)
    return QuantizedArray(data, quant_type)


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
    values, _ = numbers(x, "quantization_error")
    if values.size == 0:
        raise InputError("quantization_error: x has no elements, so there is no error to measure.")
    quant_type.row_bytes(values.shape[-1])
    sums = _core.quant.error_sums(
        values,
        quant_type.id,
        importances(
            imatrix, values.shape[-1], quant_type=quant_type, operation="quantization_error"
        ),
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
