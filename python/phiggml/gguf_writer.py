"""Writing GGUF files: beside the target, renamed when whole."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections import deque
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phiggml.atomic_file import publish_together, require_writable_name
from phiggml.errors import InputError
from phiggml.gguf_part import GGUFPart, TensorInfo, aligned
from phiggml.gguf_tensor_data import checked_shape, tensor_data
from phiggml.gguf_writer_metadata import (
    MAX_TENSOR_NAME_BYTES,
    WriterMetadata,
    encoded_size,
    require_name,
    split_pairs,
)
from phiggml.quant import QuantizedArray, QuantType

if TYPE_CHECKING:
    from phiggml.gguf import GGUFMetadata

__all__ = ["GGUFWriter"]

_MAX_HELD_BYTES = 64 << 20
_MAX_PARTS = 65535  # split.count has 16 bits


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

    With split_max_bytes or split_max_tensors the model becomes several files, named as
    llama-gguf-split names them: PREFIX-00001-of-00003.gguf, where PREFIX is `path` without .gguf.
    The first has all metadata. It is renamed last, and an old one goes before any other file is
    replaced. Sets of another number of files stay as they are.

    Args:
        path: the file to be.
        overwrite: whether it may replace an existing file.
        split_max_bytes: a file ends before its tensors would take more; a larger tensor has one
            of its own. None: no limit.
        split_max_tensors: how many tensors a file has at most. None: no limit.

    Raises:
        InputError: a name, value, shape or dtype that the format cannot hold; a call out of order.
        FileExistsError: the target, or a model split under its name, exists and overwrite is False.
        IsADirectoryError, FileNotFoundError: the target is a folder, or in none that exists.
        OSError: the file system refuses; the temporary files are removed.

    Cost:
        Arrays given to add_tensor are kept by reference, 64 MiB of them at most, so they must not
        be changed before close. Writes do not copy (arrays of another layout in pieces of 8 MiB)
        and release the GIL. A header that outgrows its room moves all data that stand behind it,
        within the file.

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
    ) -> None:
        self.path = os.fspath(path)
        self._overwrite = overwrite
        self._split_max_bytes = _positive(split_max_bytes, "split_max_bytes")
        self._split_max_tensors = _positive(split_max_tensors, "split_max_tensors")
        self._split = split_max_bytes is not None or split_max_tensors is not None
        if self._split:
            self._folder = Path(self.path).parent.resolve()
            self._require_new_set()
        else:
            # A link is written through, as open() would.
            self._target = Path(self.path).resolve()
            self._folder = self._target.parent
            require_writable_name(self._target, overwrite=overwrite)
        self._metadata = WriterMetadata()
        self._names: set[str] = set()
        # Until the output begins: what was added and declared, in order.
        self._held: list[tuple[TensorInfo, npt.NDArray[Any] | None]] = []
        self._held_bytes = 0
        # From then on.
        self._parts: list[GGUFPart] = []
        self._waiting: deque[_Place] = deque()
        self._paths: tuple[str, ...] = ()
        self._closed = False

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
            place.part.write(place.offset + place.info.nbytes - place.missing, data)
        place.missing -= data.nbytes
        if place.missing == 0:
            self._waiting.popleft()

    def close(self) -> None:
        """Writes what is left, and gives the file its name. Closing again does nothing.

        Raises:
            InputError: a tensor lacks rows.
            FileExistsError: the target appeared meanwhile, and overwrite is False.
            OSError: the file system refuses. In each case nothing is left behind.
        """
        if self._closed:
            return
        with self._discarding_on_failure():
            self._begin(spare=False)
            for place in self._waiting:
                raise InputError(
                    f"GGUFWriter.close: tensor {place.info.name!r}: it lacks {place.missing} of "
                    f"its {place.info.nbytes} bytes. Bring them by write_rows; no file was made."
                )
            files = [part.finish(self._pairs(number)) for number, part in enumerate(self._parts)]
            paths, targets = self._final_paths(), self._targets()
            named = list(zip(files, targets, strict=True))
            publish_together(named, overwrite=self._overwrite)
        self._paths = paths
        self._end()

    def discard(self) -> None:
        """Gives the file up: nothing is left behind. After close it does nothing."""
        for part in self._parts:
            part.discard()
        self._end()

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
            raise InputError(f"{what}: the writer is closed.")

    def _checked(
        self, name: str, tensor_type: QuantType, shape: tuple[int, ...], what: str
    ) -> TensorInfo:
        require_name(name, what, MAX_TENSOR_NAME_BYTES)
        if name in self._names:
            raise InputError(f"{what}: there is a tensor of this name already.")
        shape = checked_shape(shape, tensor_type, what)
        nbytes = math.prod(shape[:-1]) * tensor_type.row_bytes(shape[-1])
        return TensorInfo(name, tensor_type, shape, nbytes)

    def _add(self, info: TensorInfo, data: npt.NDArray[Any] | None) -> None:
        with self._discarding_on_failure():
            if self._parts:
                place = self._placed(info)
                self._open_parts(spare=True)
                place.part.make_room(self._pairs_bytes(place.part))
                self._fill(place, data)
            else:
                self._held.append((info, data))
                self._held_bytes += 0 if data is None else data.nbytes
            self._names.add(info.name)
            if self._held_bytes >= _MAX_HELD_BYTES:
                self._begin(spare=True)

    def _begin(self, *, spare: bool) -> None:
        """Begins the output, once, and writes what was held."""
        if self._parts:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        self._metadata.alignment_fixed = True
        self._parts = [GGUFPart(self._metadata.alignment)]
        places = [self._placed(info) for info, _ in held]
        self._open_parts(spare=spare)
        for place, (_, data) in zip(places, held, strict=True):
            self._fill(place, data)

    def _placed(self, info: TensorInfo) -> _Place:
        """A place in the last part, or in a new one when that is full."""
        part = self._parts[-1]
        nbytes = part.nbytes + aligned(info.nbytes, self._metadata.alignment)
        too_large = self._split_max_bytes is not None and nbytes > self._split_max_bytes
        if part.n_tensors > 0 and (too_large or part.n_tensors == self._split_max_tensors):
            if len(self._parts) == _MAX_PARTS:
                raise InputError(
                    f"GGUFWriter: {self.path}: a model has at most {_MAX_PARTS} files. "
                    "Allow larger ones."
                )
            part = GGUFPart(self._metadata.alignment)
            self._parts.append(part)
        return _Place(info, part, part.add(info), info.nbytes)

    def _open_parts(self, *, spare: bool) -> None:
        for part in self._parts:
            if not part.is_open:
                part.open(self._folder, self._pairs_bytes(part), spare=spare)

    def _fill(self, place: _Place, data: npt.NDArray[Any] | None) -> None:
        if data is None:
            self._waiting.append(place)
        else:
            place.part.write(place.offset, data)

    def _pairs(self, number: int) -> dict[str, bytes]:
        """The metadata of a part."""
        if not self._split:
            return self._metadata.written()
        return split_pairs(
            self._metadata, number=number, count=len(self._parts), n_tensors=len(self._names)
        )

    def _pairs_bytes(self, part: GGUFPart) -> int:
        return encoded_size(self._pairs(0 if part is self._parts[0] else 1))

    def _prefix(self) -> str:
        return self.path.removesuffix(".gguf")

    def _final_paths(self) -> tuple[str, ...]:
        if not self._split:
            return (self.path,)
        count = len(self._parts)
        return tuple(f"{self._prefix()}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))

    def _targets(self) -> list[Path]:
        if not self._split:
            return [self._target]
        return [self._folder / Path(path).name for path in self._final_paths()]

    def _require_new_set(self) -> None:
        """Checks, before any work, that no model is split under this name already."""
        folder = Path(self.path).parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if self._overwrite:
            return
        first = Path(self._prefix()).name + "-00001-of-"
        for entry in folder.iterdir():
            number = entry.name.removeprefix(first).removesuffix(".gguf")
            if entry.name == f"{first}{number}.gguf" and number.isdecimal():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(entry))

    def _end(self) -> None:
        self._closed = True
        self._metadata.closed = True
        self._held = []
        self._parts = []
        self._waiting = deque()

    @contextlib.contextmanager
    def _discarding_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


def _positive(value: int | None, what: str) -> int | None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1
    ):
        raise InputError(f"GGUFWriter: {what}: {value!r}: it must be a positive integer, or None.")
    return None if value is None else int(value)
