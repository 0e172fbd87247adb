"""Whether a GGUF file is sound: all faults of its structure, layout and numbers together."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import FormatError, InputError, UnsupportedError
from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.gguf_fault import GGUFFault
from phiggml.gguf_layout import large_padding, layout_faults
from phiggml.gguf_origin import split_place
from phiggml.gguf_piece import blocks_in_pieces, numbers, numbers_dtype
from phiggml.gguf_remote import is_url
from phiggml.gguf_text import one_line
from phiggml.progress import Progress
from phiggml.quant_type import QuantType
from phiggml.runtime import thread_count

__all__ = ["GGUFFault", "GGUFVerification", "verify_gguf"]

_MOST_NAMES = 3
# The scales that a block begins with, of types that nothing turns into numbers.
# Source: block_q8_1 and block_q8_K in ggml-common.h.
_SCALES = {"Q8_1": ("<f2", 2), "Q8_K": ("<f4", 1)}


@dataclass(frozen=True)
class GGUFVerification:
    """What verify_gguf found. str() has a line for each fault.

    Attributes:
        path: the file that was asked about.
        paths: the files that were read, more than one of a split model.
        faults: all of them; none if the file is sound.
        n_tensors: the tensors whose descriptions are sound.
        nbytes: size of the files together.
        data: whether all numbers were looked at. Those of a file whose structure is at fault
            cannot be.
    """

    path: str
    paths: tuple[str, ...]
    faults: tuple[GGUFFault, ...]
    n_tensors: int
    nbytes: int
    data: bool

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def __str__(self) -> str:
        several = len(self.paths) > 1
        lines = [
            f"{one_line(fault.path)}: {fault}" if several else str(fault) for fault in self.faults
        ]
        n_faults = len(self.faults)
        found = "sound" if self.ok else "1 fault" if n_faults == 1 else f"{n_faults:,} faults"
        facts = [f"{self.n_tensors:,} tensors", f"{self.nbytes:,} bytes"]
        if several:
            facts.insert(0, f"{len(self.paths)} parts")
        if not self.data:
            facts.append("not all numbers looked at")
        return "\n".join([*lines, f"{one_line(self.path)}: {found} ({', '.join(facts)})"])


def verify_gguf(
    path: str | os.PathLike[str],
    *,
    data: bool = True,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> GGUFVerification:
    """Looks for everything that is wrong with a GGUF file.

    The structure (every rule of GGUFFile, without stopping at the first fault); the layout (order,
    gaps, padding, bytes behind the end); whether the parts of a split model belong together; and,
    in the data, NaN, infinity, and scales that are not finite.

    Args:
        path: the file, or any part of a split model, all of which is then read.
        data: whether to look at the numbers, and at padding of 1 MiB or more, which reads the
            whole file.
        threads: how many to use; None means all cores available to the process.
        progress: called with a `Progress` after each piece of data; what it raises ends the work.

    Returns:
        GGUFVerification.

    Raises:
        InputError: the path is a URL or holds NUL, or threads is out of range.
        FormatError: the file was changed meanwhile.
        OSError: it cannot be read.

    Cost:
        One pass; memory for one piece of some MB. The GIL is released, Ctrl-C seen soon.

    Source:
        The GGUF specification; ggml's gguf_init_from_reader and ggml_validate_row_data;
        llama_model_loader for split models.

    Example:
        >>> found = verify_gguf("phi3-nano.gguf")
        >>> found.ok, found.faults
        (True, ())
    """
    name = os.fspath(path)
    if "\0" in name:
        raise InputError(f"verify: {name!r}: a path cannot hold NUL.")
    if is_url(name):
        raise InputError(f"verify: {name}: only files are verified. Download it.")
    check = _NumberCheck(thread_count(threads, "verify"), progress)
    with ExitStack() as files:
        return _verify(name, files, check if data else None)


def _verify(path: str, files: ExitStack, check: _NumberCheck | None) -> GGUFVerification:
    given = _Part.read(path, files)
    paths = _part_paths(given)
    parts = [given if p == path else _Part.read(p, files) for p in paths if Path(p).exists()]
    faults = [fault for part in parts for fault in part.faults]
    faults += list(_disagreements(given, paths, parts)) or _refusals(parts)
    opened = [part.file for part in parts if part.file is not None]
    tensors = [tensor for file in opened for tensor in file.tensors.values()]
    checked = [tensor for tensor in tensors if _may_be_nonfinite(tensor.type)]
    if check is not None:
        check.begin(sum(t.nbytes for t in checked) + sum(map(large_padding, opened)))
    for file in opened:
        faults += layout_faults(file, None if check is None else check.advance)
    if check is not None:
        faults += check.run(checked)
    return GGUFVerification(
        path=path,
        paths=tuple(part.path for part in parts),
        faults=tuple(faults),
        n_tensors=len(tensors),
        nbytes=sum(Path(part.path).stat().st_size for part in parts),
        data=check is not None and check.complete and len(opened) == len(paths),
    )


@dataclass(frozen=True)
class _Part:
    """A file, which is a model or a part of one.

    Attributes:
        path: its name.
        faults: of its structure.
        file: None if there are any.
    """

    path: str
    faults: tuple[GGUFFault, ...]
    file: GGUFFile | None

    @classmethod
    def read(cls, path: str, files: ExitStack) -> _Part:
        found = _core.gguf.find_faults(os.fsencode(path))
        faults = tuple(GGUFFault(message, offset, path=path) for message, offset in found)
        file = None if faults else files.enter_context(GGUFFile(path, follow_split=False))
        return cls(path, faults, file)

    def number(self, key: str, type: str) -> int | None:
        """A metadata value, if it is of the type that llama.cpp wants."""
        if self.file is None or key not in self.file.metadata:
            return None
        value = self.file.metadata.exact(key)
        return value.value if value.type == type and isinstance(value.value, int) else None


def _name_numbers(path: str) -> tuple[str, int, int] | None:
    """The prefix, number and count of a part's name, such as PREFIX-00001-of-00003.gguf."""
    found = re.fullmatch(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", path, re.DOTALL)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def _is_split(given: _Part) -> bool:
    if given.file is None:  # then its name is all there is to go by
        return _name_numbers(given.path) is not None
    count = given.file.metadata.get("split.count", 1)
    return not isinstance(count, int) or count > 1


def _part_paths(given: _Part) -> list[str]:
    name = _name_numbers(given.path)
    if name is None or not _is_split(given) or not 1 <= name[1] <= name[2]:
        return [given.path]
    prefix, _, count = name
    return [f"{prefix}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _disagreements(
    given: _Part, paths: Sequence[str], parts: Sequence[_Part]
) -> Iterator[GGUFFault]:
    """Why the parts of a split model do not belong together."""
    if not _is_split(given):
        return
    name = _name_numbers(given.path)
    if name is None or not 1 <= name[1] <= name[2]:
        yield GGUFFault(
            "its split.count says that it is a part of a split model, so its name must end like "
            "-00001-of-00002.gguf. Rename it.",
            path=given.path,
        )
        return
    missing = sorted(set(paths) - {part.path for part in parts})
    if missing:
        names = ", ".join(Path(p).name for p in missing[:_MOST_NAMES])
        more = ", ..." if len(missing) > _MOST_NAMES else ""
        yield GGUFFault(
            f"{len(missing)} of its {len(paths)} parts are missing: {names}{more}. Fetch them.",
            path=given.path,
        )
    for part in parts:
        if part.file is not None:
            yield from _wrong_numbers(part, paths.index(part.path), len(paths))
    yield from _duplicates(parts)
    if len(parts) == len(paths) and all(part.file is not None for part in parts):
        yield from _wrong_total(parts)


def _refusals(parts: Sequence[_Part]) -> list[GGUFFault]:
    """What GGUFFile has against parts whose names and numbers agree."""
    files = [part.file for part in parts if part.file is not None]
    for file in files:
        try:
            split_place(file._parts[0])
        except FormatError as error:
            message = str(error).removeprefix(f"{file.path}: ")
            return [GGUFFault(message, error.offset, path=file.path)]
    for file in files:
        if file.byte_order != files[0].byte_order:
            return [
                GGUFFault(
                    f"it is {file.byte_order}-endian, and {Path(files[0].path).name} is "
                    f"{files[0].byte_order}-endian. Split the model anew.",
                    path=file.path,
                )
            ]
    return []


def _wrong_numbers(part: _Part, index: int, count: int) -> Iterator[GGUFFault]:
    for key, wanted in (("split.no", index), ("split.count", count)):
        found = part.number(key, "UINT16")
        if found != wanted:
            yield GGUFFault(
                f"{key} is {_told(part, key, found)}, and must be {wanted} (UINT16) in the file "
                "of this name. Split the model anew.",
                path=part.path,
            )


def _wrong_total(parts: Sequence[_Part]) -> Iterator[GGUFFault]:
    key = "split.tensors.count"
    total = sum(len(part.file.tensors) for part in parts if part.file is not None)
    for part in parts:
        found = part.number(key, "INT32")
        absent = part.file is not None and key not in part.file.metadata
        if found != total and not (absent and part is not parts[0]):
            yield GGUFFault(
                f"{key} is {_told(part, key, found)}, and the {len(parts)} parts hold {total} "
                "tensors (INT32). Split the model anew.",
                path=part.path,
            )


def _told(part: _Part, key: str, found: int | None) -> str:
    if found is not None:
        return str(found)
    if part.file is None or key not in part.file.metadata:
        return "missing"
    return f"of type {part.file.metadata.exact(key).type}"


def _duplicates(parts: Sequence[_Part]) -> Iterator[GGUFFault]:
    homes: dict[str, str] = {}
    for part in parts:
        for name in part.file.tensors if part.file is not None else ():
            if name in homes:
                yield GGUFFault(
                    f"tensor {name!r}: it is in {Path(homes[name]).name}, too. "
                    "Split the model anew.",
                    tensor=name,
                    path=part.path,
                )
            homes.setdefault(name, part.path)


def _may_be_nonfinite(type: QuantType) -> bool:
    dtype = numbers_dtype(type)
    return type in _SCALES or (dtype is not None and dtype.kind == "f")


def _floats(
    blocks: npt.NDArray[np.uint8], type: QuantType, threads: int
) -> npt.NDArray[np.floating]:
    """The numbers of blocks; of some types, the scales alone."""
    if type not in _SCALES:
        return numbers(blocks, type, threads)
    dtype, count = _SCALES[type]
    return np.ascontiguousarray(blocks[:, : np.dtype(dtype).itemsize * count]).view(dtype)


def _spoilt(
    blocks: npt.NDArray[np.uint8], type: QuantType, values: npt.NDArray[np.floating]
) -> npt.NDArray[np.bool_]:
    """Which blocks are not finite."""
    finite = np.isfinite(values)
    # Its scale is a power of two, whose last code means NaN; ggml reads it as 2^128.
    nan_scale = blocks[:, 0] == 0xFF if type == "MXFP4" else np.zeros(len(blocks), np.bool_)
    return nan_scale if finite.all() else nan_scale | ~finite.all(axis=1)


def _place(tensor: GGUFTensor, block: int) -> str:
    """Where in a tensor a block is: for plain numbers, the index in its array."""
    if tensor.type.block_size == 1:
        return str([int(i) for i in np.unravel_index(block, tensor.shape)])
    row, column = divmod(block, tensor.shape[-1] // tensor.type.block_size)
    return f"block {column} of row {row}"


class _NumberCheck:
    """Looks at tensors' numbers, a piece at a time.

    Attributes:
        complete: whether all could be looked at.
    """

    def __init__(self, threads: int, progress: Callable[[Progress], object] | None) -> None:
        self.complete = True
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._total = 0

    def begin(self, nbytes: int) -> None:
        """Says how much there is to look at."""
        self._total = nbytes
        self.advance(0)

    def advance(self, nbytes: int) -> None:
        """Says how much more has been looked at."""
        self._done += nbytes
        if self._progress is not None:
            self._progress(Progress("verify", self._done, self._total))

    def run(self, tensors: Sequence[GGUFTensor]) -> list[GGUFFault]:
        faults = []
        for tensor in tensors:
            try:
                fault = self._fault(tensor)
            except UnsupportedError:  # a type of which nobody says how it lies in big-endian files
                self.complete = False
                self.advance(tensor.nbytes)
            else:
                faults += [fault] if fault is not None else []
        return faults

    def _fault(self, tensor: GGUFTensor) -> GGUFFault | None:
        first: int | None = None
        n_spoilt = n_nan = 0
        for index, blocks in blocks_in_pieces(tensor):
            values = _floats(blocks, tensor.type, self._threads)
            spoilt = _spoilt(blocks, tensor.type, values)
            if spoilt.any():
                first = index + int(spoilt.argmax()) if first is None else first
                n_spoilt += int(spoilt.sum())
                n_nan += int(np.isnan(values).sum())
            self.advance(blocks.nbytes)
        if first is None:
            return None
        if tensor.type.block_size == 1:
            of_all = f"{math.prod(tensor.shape):,} numbers are NaN"
            found = f"{n_nan:,} of its {of_all} and {n_spoilt - n_nan:,} are infinite"
        else:
            of_all = f"{tensor.nbytes // tensor.type.block_bytes:,} blocks"
            found = f"{n_spoilt:,} of its {of_all} have scales that are not finite, or too large"
        return GGUFFault(
            f"tensor {tensor.name!r}: {found}; the first is {_place(tensor, first)}. Make it anew.",
            tensor.offset + first * tensor.type.block_bytes,
            tensor.name,
            tensor.path,
        )
