"""What an array loses by each quant type, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError
from phiggml.gguf_text import columns
from phiggml.quant import quantization_error, quantize
from phiggml.quant_type import QuantType, quant_types

__all__ = ["ComparedType", "TypeComparison", "compare_types", "fits", "pooled", "types_named"]

_HEADING = ("type", "bits", "nrmse", "max abs", "cosine", "seconds")


@dataclass(frozen=True)
class ComparedType:
    """What one type does to an array.

    Attributes:
        type: the QuantType.
        bits_per_weight: of the type.
        nrmse, max_abs, cosine: as of QuantizationError.
        seconds: how long quantizing took.
    """

    type: QuantType
    bits_per_weight: float
    nrmse: float
    max_abs: float
    cosine: float
    seconds: float


@dataclass(frozen=True)
class TypeComparison:
    """What several types do to the same array. str() is a table; iterating gives the rows.

    Attributes:
        rows: a ComparedType for each type, by bits per weight, then by nrmse.
    """

    rows: tuple[ComparedType, ...]

    def __post_init__(self) -> None:
        by_bits = sorted(self.rows, key=lambda row: (row.bits_per_weight, row.nrmse))
        object.__setattr__(self, "rows", tuple(by_bits))

    def __iter__(self) -> Iterator[ComparedType]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [
            (
                str(row.type),
                f"{row.bits_per_weight:.3f}",
                f"{row.nrmse:.6f}",
                f"{row.max_abs:.4g}",
                f"{row.cosine:.6f}",
                f"{row.seconds:.3g}" if row.seconds < 100 else f"{row.seconds:.0f}",
            )
            for row in self.rows
        ]
        return "\n".join(columns([_HEADING, *cells], right=range(1, len(_HEADING))))


def compare_types(
    x: npt.ArrayLike,
    types: Iterable[str] | None = None,
    *,
    imatrix: npt.ArrayLike | None = None,
    threads: int | None = None,
) -> TypeComparison:
    """Measures what quantizing an array to each of several types would do to it.

    Args:
        x: float[..., n], as for `quantize`.
        types: names from `quant_types()`, any case; None means all whose blocks fit rows of n, of
            those that require an imatrix only if one is given.
        imatrix: float32[n], the importance of each column; where a type makes use of it, it
            lowers the error of the important columns at the expense of the others.
        threads: how many to use; None means all cores available to the process.

    Returns:
        TypeComparison. Its seconds are those of one call of `quantize` for each type, with x,
        imatrix and threads as they are given, by the clock on the wall. Measuring the error is not
        part of them, nor is what a type builds at its first use.

    Raises:
        InputError: types that are unknown, do not fit the rows or lack an imatrix, all before any
            work; and as `quantize` for what one of the types cannot hold.

    Cost:
        Each type quantizes x twice, once for the clock and once for the error, and dequantizes it
        once. Keeps one quantized copy at a time. The GIL is released, Ctrl-C seen soon.

    Source:
        `quantize` and `quantization_error`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(0, 0.02, (8, 1024)).astype(np.float32)
        >>> [str(row.type) for row in compare_types(x, ["Q8_0", "Q4_0", "Q4_K"])]
        ['Q4_K', 'Q4_0', 'Q8_0']
    """
    array, n = _array(x)
    weighted = imatrix is not None
    chosen = (
        [type for type in quant_types() if fits(type, n, weighted=weighted)]
        if types is None
        else types_named(types, "compare_types")
    )
    for type in chosen:
        type.row_bytes(n)
        if type.requires_imatrix and not weighted:
            raise InputError(
                f"compare_types: {type} needs an importance matrix. Pass imatrix=, or leave it out."
            )
    return TypeComparison(
        tuple(_compared(array, type, imatrix=imatrix, threads=threads) for type in chosen)
    )


def fits(type: QuantType, n: int, *, weighted: bool) -> bool:
    """Whether rows of `n` numbers can become the type, with importances or without."""
    return n % type.block_size == 0 and (weighted or not type.requires_imatrix)


def types_named(names: Iterable[str], operation: str) -> list[QuantType]:
    """Types by their names, each once.

    Raises:
        InputError: there are none, one is unknown, or no target of quantization.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"{operation}: types is {names!r}: it must be a list of names, or None.")
    found = list(dict.fromkeys(map(QuantType, names)))
    if not found:
        raise InputError(f"{operation}: types is empty. Name some, or pass None for all that fit.")
    for type in found:
        if not type.can_quantize:
            raise InputError(
                f"{operation}: {type} is no target of quantization. "
                f"Those are: {', '.join(quant_types())}."
            )
    return found


def pooled(parts: Sequence[tuple[int, TypeComparison]]) -> TypeComparison:
    """The comparisons of several arrays as one.

    Args:
        parts: how many numbers each array has, and its comparison; all of the same types.

    Returns:
        For each type: the root of the mean squared nrmse and the mean cosine, both weighted by
        numbers, as if each array were scaled to a root mean square of 1 first; the greatest of the
        differences; the sum of the seconds.
    """
    total = sum(count for count, _ in parts)
    by_type: dict[QuantType, list[tuple[float, ComparedType]]] = {}
    for count, comparison in parts:
        for row in comparison:
            by_type.setdefault(row.type, []).append((count / total, row))
    return TypeComparison(
        tuple(
            ComparedType(
                type=type,
                bits_per_weight=type.bits_per_weight,
                nrmse=math.sqrt(sum(share * row.nrmse**2 for share, row in rows)),
                max_abs=max(row.max_abs for _, row in rows),
                cosine=sum(share * row.cosine for share, row in rows),
                seconds=sum(row.seconds for _, row in rows),
            )
            for type, rows in by_type.items()
        )
    )


def _array(x: npt.ArrayLike) -> tuple[npt.ArrayLike, int]:
    """x with what its last axis has; a list is turned into an array once, all else left as is."""
    try:
        array = x if hasattr(x, "shape") else np.asarray(x)
    except ValueError as error:
        raise InputError(f"compare_types: x is no array: {error}") from error
    shape = tuple(getattr(array, "shape", ()))
    if not shape:
        raise InputError("compare_types: x has no axes: quantizing goes along the last of them.")
    if math.prod(shape) == 0:
        raise InputError("compare_types: x has no elements, so there is nothing to measure.")
    return array, int(shape[-1])


def _compared(
    x: npt.ArrayLike,
    type: QuantType,
    *,
    imatrix: npt.ArrayLike | None,
    threads: int | None,
) -> ComparedType:
    # The first use of some types builds tables, for seconds; that would depend on the order.
    quantize(np.zeros(type.block_size, np.float32), type, imatrix=np.ones(type.block_size))
    started = time.perf_counter()
    quantize(x, type, imatrix=imatrix, threads=threads)
    seconds = time.perf_counter() - started
    error = quantization_error(x, type, imatrix=imatrix, threads=threads)
    return ComparedType(
        type=type,
        bits_per_weight=type.bits_per_weight,
        nrmse=error.nrmse,
        max_abs=error.max_abs,
        cosine=error.cosine,
        seconds=seconds,
    )
