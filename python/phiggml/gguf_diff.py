"""What differs between two GGUF files: metadata, tensors, and how far their numbers are apart."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.gguf import GGUFFile, GGUFMetadata, GGUFTensor
from phiggml.gguf_piece import blocks_in_pieces, has_numbers, numbers
from phiggml.gguf_text import columns, one_line, shown_shape, shown_value
from phiggml.gguf_value import GGUFStrings
from phiggml.gguf_writer_metadata import PADDING_KEY
from phiggml.progress import Progress
from phiggml.runtime import thread_count

__all__ = ["GGUFDiff", "GGUFMetadataChange", "GGUFTensorChange", "GGUFTensorError", "diff_gguf"]

_SUMMED_AT_ONCE = 1 << 14  # in float64 they stay in the processor's cache


@dataclass(frozen=True)
class GGUFMetadataChange:
    """A key that both files have, with another value or type.

    Attributes:
        key: its name.
        a: the value in A, decoded; an array of strings as a list.
        b: the value in B.
        type_a: the type in A, such as "UINT32" or "STRING[32064]".
        type_b: the type in B.
        n_different: of two arrays, the elements that differ; those that one has more included.
        first: of two arrays, the index of the first such element.
    """

    key: str
    a: Any
    b: Any
    type_a: str
    type_b: str
    n_different: int | None = None
    first: int | None = None


@dataclass(frozen=True)
class GGUFTensorError:
    """How far the numbers of a tensor in B are from those in A, in float64.

    Attributes:
        rmse: root of the mean squared difference.
        nrmse: rmse divided by the root mean square of A (infinity where that is 0).
        max_abs: the greatest difference.
        cosine: cosine of the angle between the two.
    """

    rmse: float
    nrmse: float
    max_abs: float
    cosine: float


@dataclass(frozen=True)
class GGUFTensorChange:
    """A tensor that both files have, with another type, shape or data.

    Attributes:
        name: its name.
        type_a: the type in A.
        type_b: the type in B.
        shape_a: the shape in A.
        shape_b: the shape in B.
        data_equal: whether the data are equal, byte for byte; None where types or shapes are not.
        error: how far the numbers are apart, where shapes are equal, data not, and both types can
            be turned into numbers.
    """

    name: str
    type_a: str
    type_b: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    data_equal: bool | None
    error: GGUFTensorError | None = None


@dataclass(frozen=True)
class GGUFDiff:
    """What diff_gguf found. str() is a table.

    Attributes:
        path_a, path_b: the files.
        metadata_only_a: key -> value, of those that B lacks.
        metadata_only_b: key -> value, of those that A lacks.
        metadata_changed: keys with another value or type.
        tensors_only_a: name -> (type, shape), of those that B lacks.
        tensors_only_b: name -> (type, shape), of those that A lacks.
        tensors_changed: tensors with another type, shape or data.
        n_tensors_equal: tensors that are equal; None where tensors were not compared.
    """

    path_a: str
    path_b: str
    metadata_only_a: Mapping[str, Any]
    metadata_only_b: Mapping[str, Any]
    metadata_changed: tuple[GGUFMetadataChange, ...]
    tensors_only_a: Mapping[str, tuple[str, tuple[int, ...]]]
    tensors_only_b: Mapping[str, tuple[str, tuple[int, ...]]]
    tensors_changed: tuple[GGUFTensorChange, ...]
    n_tensors_equal: int | None

    @property
    def same(self) -> bool:
        """Whether nothing differs that was compared."""
        metadata = self.metadata_only_a or self.metadata_only_b or self.metadata_changed
        return not (metadata or self.tensors_only_a or self.tensors_only_b or self.tensors_changed)

    def __str__(self) -> str:
        changed, n_equal = self.metadata_changed, self.n_tensors_equal
        only = len(self.metadata_only_a), len(self.metadata_only_b)
        lines = [f"A: {one_line(self.path_a)}", f"B: {one_line(self.path_b)}"]
        lines.append(f"metadata: {_counted(*only, len(changed))}")
        for sign, values in (("-", self.metadata_only_a), ("+", self.metadata_only_b)):
            lines += [f"{sign} {one_line(key)}: {shown_value(v)}" for key, v in values.items()]
        lines += [f"~ {_metadata_line(change)}" for change in changed]
        if n_equal is None:
            return "\n".join(lines)
        only = len(self.tensors_only_a), len(self.tensors_only_b)
        lines.append(f"tensors: {_counted(*only, len(self.tensors_changed))}, {n_equal} equal")
        for sign, tensors in (("-", self.tensors_only_a), ("+", self.tensors_only_b)):
            for name, (type, shape) in tensors.items():
                lines.append(f"{sign} {one_line(name)}: {type}, {shown_shape(shape)}")
        if self.tensors_changed:
            heading = ("~ tensor", "A", "B", "shape", "nrmse", "rmse", "max_abs", "cosine")
            rows = [heading, *map(_tensor_row, self.tensors_changed)]
            lines += columns(rows, right=(4, 5, 6, 7))
        return "\n".join(lines)


def diff_gguf(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    tensors: bool = True,
    errors: bool = True,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> GGUFDiff:
    """Compares two GGUF files, whatever the order and place of what is in them.

    Args:
        a: the first file, or any part of a split model.
        b: the second.
        tensors: whether to compare tensors, too; metadata alone needs no data.
        errors: whether to measure how far the numbers of tensors are apart.
        threads: how many to use; None means all cores available to the process.
        progress: called with a `Progress` after each piece of data; what it raises ends the work.

    Returns:
        GGUFDiff. `phiggml.padding`, which only takes up room, is no difference.

    Raises:
        InputError: threads is out of range.
        FormatError: one of them is no valid GGUF, or was changed meanwhile.
        UnsupportedError: data of a big-endian file that nothing turns round.
        OSError: one of them cannot be read.

    Cost:
        Reads the data of tensors that both have, those that differ twice at most; memory for some
        pieces of some MB. The GIL is released, Ctrl-C seen soon.

    Source:
        Metadata are equal if type and value are, bit for bit; numbers are those of `dequantize`.

    Example:
        >>> diff_gguf("phi3-nano.gguf", "phi3-nano.gguf").same
        True
    """
    n_threads = thread_count(threads, "diff")
    with GGUFFile(a) as file_a, GGUFFile(b) as file_b:
        metadata_a, metadata_b = file_a.metadata, file_b.metadata
        pairs = [(t, file_b.tensors[t.name]) for t in _common(file_a.tensors, file_b.tensors)]
        comparison = _Comparison(n_threads, errors=errors, progress=progress)
        changes = comparison.run(pairs if tensors else [])
        changed = tuple(change for change in changes if change is not None)
        return GGUFDiff(
            path_a=file_a.path,
            path_b=file_b.path,
            metadata_only_a=_only(metadata_a, metadata_b),
            metadata_only_b=_only(metadata_b, metadata_a),
            metadata_changed=tuple(_metadata_changes(metadata_a, metadata_b)),
            tensors_only_a=_only_described(file_a, file_b) if tensors else {},
            tensors_only_b=_only_described(file_b, file_a) if tensors else {},
            tensors_changed=changed,
            n_tensors_equal=len(changes) - len(changed) if tensors else None,
        )


def _common(a: Mapping[str, GGUFTensor], b: Collection[str]) -> list[GGUFTensor]:
    return [tensor for name, tensor in a.items() if name in b]


def _only(a: GGUFMetadata, b: GGUFMetadata) -> dict[str, Any]:
    return {key: _copied(a[key]) for key in a if key not in b and key != PADDING_KEY}


def _only_described(a: GGUFFile, b: GGUFFile) -> dict[str, tuple[str, tuple[int, ...]]]:
    missing = (tensor for name, tensor in a.tensors.items() if name not in b.tensors)
    return {tensor.name: (str(tensor.type), tensor.shape) for tensor in missing}


def _metadata_changes(a: GGUFMetadata, b: GGUFMetadata) -> Iterator[GGUFMetadataChange]:
    for key in a:
        if key in b and key != PADDING_KEY and a.encoded(key) != b.encoded(key):
            exact = a.exact(key), b.exact(key)
            old, new = (_copied(value.value) for value in exact)
            n_different, first = _elements(old, new)
            yield GGUFMetadataChange(
                key,
                old,
                new,
                _typed(exact[0].type, old),
                _typed(exact[1].type, new),
                n_different,
                first,
            )


def _copied(value: Any) -> Any:
    """A metadata value that needs no file: arrays of strings as lists."""
    if isinstance(value, GGUFStrings):
        return list(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_array(value: Any) -> bool:
    return isinstance(value, list | np.ndarray)


def _typed(type: str, value: Any) -> str:
    return f"{type}[{len(value)}]" if _is_array(value) else type


def _elements(a: Any, b: Any) -> tuple[int | None, int | None]:
    """How many elements of two arrays differ, and the first that does."""
    if not (_is_array(a) and _is_array(b)):
        return None, None
    shorter, longer = sorted((len(a), len(b)))
    x, y = a[:shorter], b[:shorter]
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        x, y = (values.astype(values.dtype.newbyteorder("<")) for values in (x, y))
        differ = _bits(x) != _bits(y) if x.dtype == y.dtype else (x != y).reshape(-1, 1)
        at = np.flatnonzero(differ.any(axis=1)).tolist()
    elif isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        at = list(range(shorter))
    else:
        at = [i for i, (old, new) in enumerate(zip(x, y, strict=True)) if old != new]
    n_different = len(at) + longer - shorter
    return n_different, (at[0] if at else shorter) if n_different else None


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return values.view(np.uint8).reshape(len(values), values.itemsize)


class _Comparison:
    """Compares tensors, a piece at a time."""

    def __init__(
        self, threads: int, *, errors: bool, progress: Callable[[Progress], object] | None
    ) -> None:
        self._threads = threads
        self._errors = errors
        self._progress = progress
        self._before = 0  # bytes of tensors that are done
        self._total = 0

    def run(
        self, pairs: Collection[tuple[GGUFTensor, GGUFTensor]]
    ) -> list[GGUFTensorChange | None]:
        self._total = sum(a.nbytes for a, _ in pairs)
        self._advance(0)
        changes = []
        for a, b in pairs:
            changes.append(self._change(a, b))
            self._before += a.nbytes
            self._advance(0)
        return changes

    def _advance(self, nbytes: int) -> None:
        if self._progress is not None:
            self._progress(Progress("diff", self._before + nbytes, self._total))

    def _change(self, a: GGUFTensor, b: GGUFTensor) -> GGUFTensorChange | None:
        alike = a.type == b.type and a.shape == b.shape
        n_equal = self._n_equal_bytes(a, b) if alike else 0
        if alike and n_equal == a.nbytes:
            return None
        measured = self._errors and a.shape == b.shape and has_numbers(a.type)
        return GGUFTensorChange(
            a.name,
            str(a.type),
            str(b.type),
            a.shape,
            b.shape,
            False if alike else None,
            self._error(a, b, n_equal) if measured and has_numbers(b.type) else None,
        )

    def _n_equal_bytes(self, a: GGUFTensor, b: GGUFTensor) -> int:
        """Bytes of pieces that are equal, up to the first that is not."""
        done = 0
        for (_, x), (_, y) in zip(blocks_in_pieces(a), blocks_in_pieces(b), strict=True):
            if not np.array_equal(x, y):
                break
            done += x.nbytes
            self._advance(done)
        return done

    def _error(self, a: GGUFTensor, b: GGUFTensor, shown: int) -> GGUFTensorError:
        done = 0
        sums, greatest = np.zeros(4), 0.0
        for (_, x), (_, y) in zip(blocks_in_pieces(a), blocks_in_pieces(b), strict=True):
            old = numbers(x, a.type, self._threads).reshape(-1)
            new = numbers(y, b.type, self._threads).reshape(-1)
            for start in range(0, old.size, _SUMMED_AT_ONCE):
                part = slice(start, start + _SUMMED_AT_ONCE)
                greatest = _add_sums(sums, greatest, old[part], new[part])
            done += x.nbytes
            self._advance(max(done, shown))
        return _error_of(sums.tolist(), greatest, math.prod(a.shape))


def _add_sums(
    sums: npt.NDArray[np.float64], greatest: float, old: npt.NDArray[Any], new: npt.NDArray[Any]
) -> float:
    """Adds the sums of a^2, b^2, a * b and (b - a)^2; returns the greatest |b - a| so far."""
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        a, b = old.astype(np.float64), new.astype(np.float64)
        difference = b - a
        for i, (x, y) in enumerate(((a, a), (b, b), (a, b), (difference, difference))):
            sums[i] += np.einsum("i,i->", x, y)
        return float(np.maximum(greatest, np.abs(difference, out=difference).max()))


def _error_of(sums: list[float], greatest: float, count: int) -> GGUFTensorError:
    squares_a, squares_b, products, squared_error = sums
    rmse, rms = math.sqrt(squared_error / count), math.sqrt(squares_a / count)
    lengths = math.sqrt(squares_a) * math.sqrt(squares_b)
    still = math.inf if rmse > 0 else rmse
    return GGUFTensorError(
        rmse=rmse,
        nrmse=rmse / rms if rms > 0 else still,
        max_abs=greatest,
        cosine=float(rmse == 0) if lengths == 0 else products / lengths,
    )


def _counted(n_a: int, n_b: int, n_changed: int) -> str:
    return f"{n_a} only in A, {n_b} only in B, {n_changed} changed"


def _metadata_line(change: GGUFMetadataChange) -> str:
    key = one_line(change.key)
    types = "" if change.type_a == change.type_b else f"{change.type_a} -> {change.type_b}: "
    if change.n_different is None:
        return f"{key}: {types}{shown_value(change.a)} -> {shown_value(change.b)}"
    longer = max(len(change.a), len(change.b))
    counts = f"{change.n_different:,} of {longer:,} elements differ"
    line = f"{key}: {types or change.type_a + ': '}{counts}"
    if change.first is None:
        return line
    old, new = (
        shown_value(value[change.first]) if change.first < len(value) else "nothing"
        for value in (change.a, change.b)
    )
    return f"{line}, the first is {change.first}: {old} -> {new}"


def _tensor_row(change: GGUFTensorChange) -> tuple[str, ...]:
    shape = shown_shape(change.shape_a)
    if change.shape_a != change.shape_b:
        shape += f" -> {shown_shape(change.shape_b)}"
    error = change.error
    figures = (
        ("", "", "", "")
        if error is None
        else (
            f"{error.nrmse:.4g}",
            f"{error.rmse:.4g}",
            f"{error.max_abs:.4g}",
            f"{error.cosine:.6f}",
        )
    )
    return (f"~ {one_line(change.name)}", change.type_a, change.type_b, shape, *figures)
