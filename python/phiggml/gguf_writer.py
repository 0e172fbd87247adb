"""Writing GGUF files: beside the target, renamed when whole."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import deque
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phiggml.atomic_file import AtomicFile, naming_target, publish_together
from phiggml.errors import InputError
from phiggml.gguf_part import GGUFPart, TensorInfo
from phiggml.gguf_parts import GGUFParts, SplitRules
from phiggml.gguf_tensor_data import checked_shape, tensor_data
from phiggml.gguf_writer_metadata import (
    MAX_ENTRIES,
    MAX_TENSOR_NAME_BYTES,
    WriterMetadata,
    require_name,
)
from phiggml.gguf_writer_target import WriterTarget
from phiggml.quant import QuantizedArray, QuantType

if TYPE_CHECKING:
    from phiggml.gguf import GGUFMetadata

__all__ = ["GGUFWriter"]

_MAX_HELD_BYTES = 64 << 20
_MAX_OPEN = 16  # files at a time, beside the first


@dataclass
class _Place:
    """Where a tensor's data go, and how many of them are still to come by write_rows."""

    info: TensorInfo
    part: GGUFPart
    offset: int
    missing: int


class GGUFWriter:
    """Writes a GGUF file, which appears under its name only when it is whole.

    `metadata` takes bool, int (UINT32 where it fits, else INT32, UINT64, INT64), float (FLOAT32),
    str, sequences of one of these (ints INT32, floats FLOAT32), numpy arrays and scalars (their
    dtype) and GGUFValue (the type it names). It may be set until close, but general.alignment only
    before data are written.

    Tensors have the order in which they are added or declared. Small files are written at close.
    When the arrays added so far hold 64 MiB, they go into a temporary file, and each later one as
    it comes, behind a header with room to spare; what is left of the room becomes the first key,
    `phiggml.padding` (blanks). A key of this name that is set or copied is not written.

    With split_max_bytes, split_max_tensors or split_counts the model becomes several files, named
    as llama-gguf-split names them: PREFIX-00001-of-00003.gguf, where PREFIX is `path` without
    .gguf. The first has all metadata. It is renamed last. Old files stand aside before, and what is
    raised until then puts them back; a process that is killed just between leaves no first file.
    Sets of another number of files stay as they are.

    Args:
        path: the file to be.
        overwrite: whether it may replace an existing file, whose permissions it keeps.
        split_max_bytes: a file ends before its tensors would take more; a larger tensor has one
            of its own. None: no limit.
        split_max_tensors: how many tensors a file has at most. None: no limit.
        split_counts: how many tensors each file has; some may have none. None: no such numbers.

    Raises:
        InputError: a name, value, shape or dtype that the format cannot hold, or more of them
            than GGUFFile reads (2^18 tensors or keys, a header of 128 MiB); a call out of order.
        FileExistsError: the target, or any file of a model split under its name, exists and
            overwrite is False.
        IsADirectoryError, FileNotFoundError: the target is a folder, or in none that exists.
        BlockingIOError: others were naming the files of a split model there for ten seconds.
        OSError: the file system refuses; the temporary files are removed.

    Cost:
        Arrays given to add_tensor are kept by reference, 64 MiB of them at most, so they must not
        be changed before close. Writes do not copy (arrays of another layout in pieces of 8 MiB)
        and release the GIL. Up to 17 files are open at a time. A header that outgrows its room
        moves all data that stand behind it, within the file.

    Source:
        The GGUF specification, version 3; ggml's limits on names and dimensions; llama-gguf-split.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with GGUFWriter(pathlib.Path(folder) / "small.gguf") as w:
        ...         w.metadata["general.architecture"] = "phi3"
        ...         w.add_tensor("ones", np.ones((2, 4), np.float32))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        split_max_bytes: int | None = None,
        split_max_tensors: int | None = None,
        split_counts: Sequence[int] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._overwrite = overwrite
        self._rules = SplitRules(split_max_bytes, split_max_tensors, split_counts)
        self._target = WriterTarget(self.path, split=self._rules.split, overwrite=overwrite)
        self._metadata = WriterMetadata()
        self._names: set[str] = set()
        # Until the output begins: what was added and declared, in order.
        self._held: list[tuple[TensorInfo, npt.NDArray[Any] | None]] = []
        self._held_bytes = 0
        # From then on.
        self._parts: GGUFParts | None = None
        self._open: deque[GGUFPart] = deque()
        self._waiting: deque[_Place] = deque()
        self._paths: tuple[str, ...] = ()
        self._closed = False
        self._given_up = False

    @property
    def metadata(self) -> MutableMapping[str, Any]:
        """The metadata to be written, in the order in which they are set."""
        return self._metadata

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that were written; none before close."""
        return self._paths

    def copy_metadata(self, metadata: GGUFMetadata, *, skip: Collection[str] = ()) -> None:
        """Takes over another file's metadata, byte for byte, as if each key were set.

        Args:
            metadata: of an open GGUFFile.
            skip: keys to leave out.

        Raises:
            InputError: the writer or the file is closed.

        Cost:
            A copy of the encoded bytes; nothing is decoded.
        """
        self._metadata.copy(metadata, skip)

    def add_tensor(
        self, name: str, array: npt.ArrayLike | QuantizedArray, type: str | None = None
    ) -> None:
        """Adds a tensor.

        Args:
            name: 1 to 63 bytes of UTF-8, not used before in this model.
            array: float32, float16, bfloat16 (ml_dtypes), float64, int8 ... int64 of 1 to 4 axes,
                in any layout; a QuantizedArray; or, with `type`, uint8[..., row_bytes] of that
                type's bytes or uint16 bits of "BF16".
            type: what to convert a float array to, a quant type or "F64"; None keeps its own.

        Raises:
            InputError: the name, dtype or shape cannot be written, or quantize refuses the values.
            OSError: the file system refuses; the temporary files are removed.

        Cost:
            Keeps a reference, or writes at once where 64 MiB are held already: the array must not
            be changed before close. With `type` a float array is quantized now, on all threads.
        """
        what = f"GGUFWriter.add_tensor: tensor {name!r}"
        self._require_open(what)
        if isinstance(array, QuantizedArray):
            if type is not None and QuantType(type) != array.type:
                raise InputError(
                    f"{what}: the array is {array.type}, not {QuantType(type)}. "
                    "Dequantize it first to convert it."
                )
            data, tensor_type, shape = array.data, QuantType(array.type), array.shape
        else:
            data, tensor_type, shape = tensor_data(np.asarray(array), type, what)
        self._add(self._checked(name, tensor_type, shape, what), data)

    def add_tensor_stream(self, name: str, shape: tuple[int, ...], type: str) -> None:
        """Declares a tensor whose bytes write_rows will bring, after those declared before it.

        Args:
            name: 1 to 63 bytes of UTF-8, not used before in this model.
            shape: in numpy's order.
            type: its quant type.

        Raises:
            InputError: the name, shape or type cannot be written.

        Cost:
            None. Where all tensors are declared before the first write_rows, the header has its
            exact size; those that come later may move the data that were written.
        """
        what = f"GGUFWriter.add_tensor_stream: tensor {name!r}"
        self._require_open(what)
        self._add(self._checked(name, QuantType(type), tuple(shape), what), None)

    def write_rows(self, data: npt.NDArray[np.uint8]) -> None:
        """Appends whole rows to the first of the declared tensors that lacks any.

        Tensors may be added and declared before, between and after its rows.

        Args:
            data: uint8[..., row_bytes], C-contiguous.

        Raises:
            InputError: no tensor waits for rows, these are no whole rows, or more than it lacks.
            OSError: the file system refuses; the temporary files are removed.

        Cost:
            No copy; the GIL is released in each write.
        """
        self._require_open("GGUFWriter.write_rows")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            raise InputError("GGUFWriter.write_rows: data must be an array of uint8.")
        if not data.flags.c_contiguous:
            raise InputError(
                "GGUFWriter.write_rows: data must be C-contiguous. Pass np.ascontiguousarray(data)."
            )
        if not self._waiting and all(held is not None for _, held in self._held):
            raise InputError("GGUFWriter.write_rows: no tensor waits for rows; all are complete.")
        with self._discarding_on_failure():
            self._begin(spare=False)
        place = self._waiting[0]
        if data.nbytes % place.info.row_bytes != 0 or data.nbytes > place.missing:
            raise InputError(
                f"GGUFWriter.write_rows: tensor {place.info.name!r}: {data.nbytes} bytes were "
                f"given: it takes whole rows of {place.info.row_bytes} bytes and lacks "
                f"{place.missing}."
            )
        with self._discarding_on_failure():
            self._opened(place.part).write(place.offset + place.info.nbytes - place.missing, data)
        place.missing -= data.nbytes
        if place.missing == 0:
            self._waiting.popleft()

    def close(self) -> None:
        """Writes what is left, and gives the file its name. Closing again does nothing.

        Raises:
            InputError: a tensor lacks rows, or the header is larger than GGUFFile reads; the file
                was given up when something failed before.
            FileExistsError: the target appeared meanwhile, and overwrite is False.
            OSError: the file system refuses. In each case nothing is left behind.
        """
        if self._closed:
            # Who sees the first exception need not see another.
            if self._given_up and sys.exc_info()[1] is None:
                raise self._is_closed("GGUFWriter.close")
            return
        with self._discarding_on_failure():
            self._begin(spare=False)
            for place in self._waiting:
                raise InputError(
                    f"GGUFWriter.close: tensor {place.info.name!r}: it lacks {place.missing} of "
                    f"its {place.info.nbytes} bytes. Bring them by write_rows; no file was made."
                )
            parts = self._begun
            count = len(parts.parts)
            self._target.require_writable(count)
            files = [
                self._opened(part).finish(parts.pairs(number))
                for number, part in enumerate(parts.parts)
            ]
            named = list(zip(files, self._target.targets(count), strict=True))
            publish_together(named, overwrite=self._overwrite)
        self._paths = self._target.paths(count)
        self._end()

    def discard(self) -> None:
        """Gives the file up: nothing is left behind. After close it does nothing.

        Raises:
            OSError: the file system refuses to remove or close one; the others are gone.
        """
        parts = [] if self._parts is None else self._parts.parts
        self._given_up = False
        self._end()
        with contextlib.ExitStack() as stack:
            # All of them, whatever one raises; the first, whose lock they share, goes last.
            for part in parts:
                stack.callback(part.discard)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return (
            f"GGUFWriter({self.path!r}, {state}{len(self._metadata)} metadata keys, "
            f"{len(self._names)} tensors)"
        )

    def _require_open(self, what: str) -> None:
        if self._closed:
            raise self._is_closed(what)

    def _is_closed(self, what: str) -> InputError:
        if self._given_up:
            return InputError(
                f"{what}: {self.path}: the file was given up when something failed before. "
                "Write it anew."
            )
        return InputError(f"{what}: the writer is closed.")

    def _checked(
        self, name: str, tensor_type: QuantType, shape: tuple[int, ...], what: str
    ) -> TensorInfo:
        require_name(name, what, MAX_TENSOR_NAME_BYTES)
        if name in self._names:
            raise InputError(f"{what}: there is a tensor of this name already.")
        if not self._rules.split and len(self._names) == MAX_ENTRIES:
            raise InputError(
                f"{what}: there are {MAX_ENTRIES} tensors, as many as GGUFFile reads. "
                "Split the model."
            )
        shape = checked_shape(shape, tensor_type, what)
        nbytes = math.prod(shape[:-1]) * tensor_type.row_bytes(shape[-1])
        return TensorInfo(name, tensor_type, shape, nbytes)

    def _add(self, info: TensorInfo, data: npt.NDArray[Any] | None) -> None:
        with self._discarding_on_failure():
            if self._parts is not None:
                place = self._placed(info)
                for part in reversed(self._parts.parts):  # files without tensors may lie between
                    if part.file is not None:
                        break
                    self._begin_part(part, spare=True)
                self._opened(place.part).make_room(self._parts.pairs_bytes(place.part))
                self._fill(place, data)
            else:
                self._held.append((info, data))
                self._held_bytes += 0 if data is None else data.nbytes
            self._names.add(info.name)
            if self._held_bytes >= _MAX_HELD_BYTES:
                self._begin(spare=True)

    def _begin(self, *, spare: bool) -> None:
        """Begins the output, once, and writes what was held."""
        if self._parts is not None:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        self._metadata.alignment_fixed = True
        self._parts = GGUFParts(self.path, self._metadata, self._rules)
        places = [self._placed(info) for info, _ in held]
        self._target.require_writable(len(self._parts.parts))
        for part in self._parts.parts:
            self._begin_part(part, spare=spare)
        for place, (_, data) in zip(places, held, strict=True):
            self._fill(place, data)

    @property
    def _begun(self) -> GGUFParts:
        if self._parts is None:
            raise InputError(f"GGUFWriter: {self.path}: the output was not begun.")
        return self._parts

    def _placed(self, info: TensorInfo) -> _Place:
        part, offset = self._begun.place(info)
        return _Place(info, part, offset, info.nbytes)

    def _begin_part(self, part: GGUFPart, *, spare: bool) -> None:
        if part.file is None:
            target, parts = self._target, self._begun
            leader = parts.parts[0].file
            file = AtomicFile(target.folder, permissions=target.permissions, leader=leader)
            part.begin(file, parts.pairs_bytes(part), spare=spare)
            self._opened(part)

    def _opened(self, part: GGUFPart) -> GGUFPart:
        """The part; those that were not used for the longest are closed for the time being."""
        if part in self._open:
            self._open.remove(part)
        self._open.append(part)
        if len(self._open) > _MAX_OPEN:
            self._open.popleft().rest()
        return part

    def _fill(self, place: _Place, data: npt.NDArray[Any] | None) -> None:
        if data is None:
            self._waiting.append(place)
        else:
            self._opened(place.part).write(place.offset, data)

    def _end(self) -> None:
        self._closed = True
        self._metadata.closed = True
        self._held = []
        self._parts = None
        self._open = deque()
        self._waiting = deque()

    @contextlib.contextmanager
    def _discarding_on_failure(self) -> Iterator[None]:
        try:
            with naming_target(self.path):
                yield
        except BaseException:
            try:
                self.discard()
            finally:
                self._given_up = True
            raise
