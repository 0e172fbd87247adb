"""Files of importances, as llama-imatrix writes them: GGUF, or the older .dat.

A GGUF file has for each tensor the sums of squared inputs, float32[experts, n] as NAME.in_sum2, and
how many inputs went into them, float32[experts, 1] as NAME.counts. Axes of length 1 in front are
left out, and a tensor of several matrices that all inputs went through has one count.

Source: what llama.cpp b11549 writes (tools/imatrix) and reads (common/imatrix-loader.cpp,
tools/quantize).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFStrings, GGUFTensor
from phiggml.imatrix_dat import MOST_BYTES, read_dat

__all__ = ["Imatrix", "read_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
_KEYS = (_DATASETS, _CHUNKS, "imatrix.chunk_size")
_MOST_DATASETS = 1 << 16


@dataclass(frozen=True, eq=False)
class Imatrix:
    """How important the columns of a model's tensors are.

    Attributes:
        importances: tensor name -> float32[experts, n], the mean squares of what was multiplied
            with each column; a .dat file does not say how many experts there are: float32[1, n].
            Experts without data are all ones.
        unseen: tensor name -> experts without data, where the file tells them apart.
        datasets: what it was made of.
        n_chunks: how many chunks of text went into it; 0 where nobody knows.
        file: the file's name as it was given, or None.
    """

    importances: Mapping[str, npt.NDArray[np.float32]]
    unseen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    file: str | None = None

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return None if self.file is None else Path(self.file)

    @property
    def n_entries(self) -> int:
        """How many tensors it has importances of."""
        return len(self.importances)

    def __repr__(self) -> str:
        of = "" if self.file is None else f"{self.file!r}, "
        return f"Imatrix({of}{self.n_entries} tensors, {self.n_chunks} chunks)"


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Reads a file of importances; which form it has, its first bytes say.

    Args:
        path: a file as llama-imatrix writes it, GGUF or .dat.

    Returns:
        An Imatrix with read-only arrays. Whether its values are finite and fit a model is looked
        at when it is used; counts that are none become NaN.

    Raises:
        FormatError: it is neither, or not sound; .offset says where.
        InputError: the path cannot be one, or leads to no regular file.
        OSError: it cannot be read.

    Cost:
        One copy of the values; a file that claims more than it can hold, or more than 4 GiB of
        them, is refused before anything is allocated.

    Source:
        Means as llama-quantize b11549 computes them: sums by counts, and all ones where the count
        is 0.

    Example:
        >>> import pathlib, struct
        >>> entry = struct.pack("<i13sii2f", 13, b"output.weight", 2, 2, 3.0, 8.0)
        >>> _ = pathlib.Path("imatrix.dat").write_bytes(struct.pack("<i", 1) + entry)
        >>> read_imatrix("imatrix.dat").importances["output.weight"]
        array([[1.5, 4. ]], dtype=float32)
    """
    name = os.fspath(path)
    with _opened(name) as stream:
        if stream.peek(4)[:4] == b"GGUF":
            imatrix = _read_gguf(stream, name)
        else:
            content = read_dat(stream, name)
            means = {name: values.reshape(1, -1) for name, values in content.means.items()}
            imatrix = Imatrix(means, {}, content.datasets, content.n_chunks, name)
    for values in imatrix.importances.values():
        values.setflags(write=False)
    return imatrix


def _opened(name: str) -> BufferedReader:
    if not isinstance(name, str):
        raise InputError(f"imatrix: {name!r}: it is bytes. Pass the path as str.")
    try:
        stream = open(name, "rb", opener=_without_waiting)  # noqa: SIM115
    except ValueError as error:
        raise InputError(f"imatrix: {name!r}: a path cannot hold this: {error}.") from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise InputError(f"imatrix: {name}: it is no regular file. Copy it to one.")
    return stream


def _without_waiting(name: str, flags: int) -> int:
    """Opens a file; of a named pipe, does not wait for its writer."""
    return os.open(name, flags | os.O_NONBLOCK)


def _read_gguf(stream: BufferedReader, name: str) -> Imatrix:
    with GGUFFile(stream, follow_split=False) as file:
        if file.metadata.get("general.type") != "imatrix" and not all(
            key in file.metadata for key in _KEYS
        ):
            raise FormatError(
                f"imatrix: {name}: it is no importance matrix: its general.type is not 'imatrix'. "
                "Make one with llama-imatrix.",
                path=name,
            )
        sums = _tensors(file, _SUMS)
        counts = _tensors(file, _COUNTS)
        total = sum(tensor.nbytes for tensor in sums.values())
        if not (sums or counts) or total > MOST_BYTES:
            holds = f"{total:,} bytes of importances, more than {MOST_BYTES:,}"
            raise FormatError(
                f"imatrix: {name}: it holds {holds if sums else 'importances of no tensor'}. "
                "Make one with llama-imatrix.",
                path=name,
            )
        means, unseen = {}, {}
        for tensor_name in {**sums, **counts}:
            pair = (sums.get(tensor_name), counts.get(tensor_name))
            means[tensor_name], seen = _means(tensor_name, pair, name)
            if not seen.all():
                unseen[tensor_name] = tuple(np.flatnonzero(~seen).tolist())
        return Imatrix(
            MappingProxyType(means),
            MappingProxyType(unseen),
            _datasets(file, name),
            _n_chunks(file, name),
            name,
        )


def _tensors(file: GGUFFile, suffix: str) -> dict[str, GGUFTensor]:
    return {
        name.removesuffix(suffix): tensor
        for name, tensor in file.tensors.items()
        if name.endswith(suffix)
    }


def _means(
    name: str, pair: tuple[GGUFTensor | None, GGUFTensor | None], path: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Means, float32[experts, n], and which experts saw data, bool[experts]."""
    sums, counts = pair
    experts = 0 if counts is None else int(np.prod(counts.shape, dtype=np.int64))
    if (
        sums is None
        or counts is None
        or (sums.type, counts.type) != ("F32", "F32")
        or not (experts and _is_for(experts, sums.shape))
    ):
        place = sums or counts
        raise FormatError(
            f"imatrix: {path}: importances of {name!r}: {_SUMS} must be float32[experts, n] and "
            f"{_COUNTS} float32[experts, 1]. Collect them anew.",
            path=path,
            offset=None if place is None else place.offset,
        )
    values = _floats(sums).reshape(experts, -1)
    given = _floats(counts).reshape(experts, 1).astype(np.float64)
    with np.errstate(all="ignore"):
        # Rounded as C's lround does. What is no count makes values that nobody accepts.
        sound = (given >= 0) & (given < 2.0**63)
        n_inputs = np.where(sound, np.floor(given + 0.5), np.nan).astype(np.float32)
        means = np.where(n_inputs == 0, np.float32(1), values / n_inputs)
    return means, (n_inputs != 0).ravel()


def _is_for(experts: int, shape: tuple[int, ...]) -> bool:
    """Whether sums of a shape are those of so many experts."""
    if len(shape) == 1:
        return shape[0] % experts == 0
    return int(np.prod(shape[:-1], dtype=np.int64)) == experts


def _floats(tensor: GGUFTensor) -> npt.NDArray[np.float32]:
    return tensor.read_rows().view("<f4").astype(np.float32, copy=False)


def _datasets(file: GGUFFile, path: str) -> tuple[str, ...]:
    found = file.metadata.get(_DATASETS)
    if not isinstance(found, GGUFStrings):
        return ()
    if len(found) > _MOST_DATASETS:
        raise FormatError(
            f"imatrix: {path}: {_DATASETS} names {len(found):,} data sets. Collect it anew.",
            path=path,
        )
    return tuple(found)


def _n_chunks(file: GGUFFile, path: str) -> int:
    if _CHUNKS not in file.metadata:
        return 0
    found = file.metadata.exact(_CHUNKS)
    if found.type != "UINT32" or not isinstance(found.value, int) or found.value >= 1 << 31:
        raise FormatError(
            f"imatrix: {path}: {_CHUNKS} must be a UINT32 below 2^31. Collect it anew.", path=path
        )
    return found.value
