"""GGUF files: metadata decoded on access, tensors as views of the mapped file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.gguf_byte_order import little_endian_bytes
from phiggml.gguf_origin import OpenPart, Origin, open_part, open_parts
from phiggml.gguf_piece import PLAIN_DTYPES
from phiggml.gguf_value import GGUFStrings, GGUFValue, encode_value
from phiggml.gguf_writer import GGUFWriter
from phiggml.quant import QuantType, dequantize

__all__ = ["GGUFFile", "GGUFMetadata", "GGUFStrings", "GGUFTensor", "GGUFValue", "GGUFWriter"]


class GGUFFile:
    """A GGUF file, checked when it is opened and mapped read-only.

    Of a split model any part may be given: all of them are opened as one file, with the metadata
    of the first and the tensors of all.

    Args:
        source: a path; a URL that fsspec opens, such as "https://..." (the extra "remote"),
            of which the header alone is fetched, and tensors when they are asked for; the bytes
            of a file; or a seekable binary file object.
        follow_split: False opens nothing but the file that is given.

    Raises:
        FormatError: the file is no valid GGUF, .offset says where; or the parts do not belong
            together.
        InputError: the path holds NUL; the source is none of these.
        UnsupportedError: a URL cannot be read here.
        OSError: it cannot be opened.

    Cost:
        One pass over the header without the GIL; strings are skipped, tensor data not touched. Of
        files that can be written to by others, the header is read as copies; bytes that can be
        written to (bytearray) are copied whole.

    Source:
        The GGUF specification, versions 1 to 3, in both byte orders; ggml's limits on names,
        dimensions and types.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "small.gguf"
        ...     with GGUFWriter(path) as w:
        ...         w.metadata["general.architecture"] = "phi3"
        ...         w.add_tensor("ones", np.ones((2, 4), np.float32))
        ...     with GGUFFile(path) as f:
        ...         f.metadata["general.architecture"], f.tensors["ones"].shape
        ('phi3', (2, 4))
    """

    def __init__(self, source: Origin, *, follow_split: bool = True) -> None:
        given = open_part(source)
        self._parts: tuple[OpenPart, ...] = open_parts(given) if follow_split else (given,)
        self.path = given.name
        self.paths = tuple(part.name for part in self._parts)
        self._metadata: GGUFMetadata | None = None
        self._tensors: GGUFTensors | None = None

    @property
    def version(self) -> int:
        """The version of the format, 1 to 3."""
        return self._open_file().version

    @property
    def alignment(self) -> int:
        """What each tensor's data offset is a multiple of, in bytes."""
        return self._open_file().alignment

    @property
    def header_end(self) -> int:
        """Where the first part's header ends, in bytes; what aligns the data follows."""
        return self._open_file().header_end

    @property
    def data_offset(self) -> int:
        """Where the tensor data begin in the first part, in bytes."""
        return self._open_file().data_offset

    @property
    def nbytes(self) -> int:
        """The size of all parts, in bytes."""
        return sum(part.core.size for part in self._open_parts())

    @property
    def byte_order(self) -> Literal["little", "big"]:
        """How numbers lie in the file; values are right either way."""
        return "big" if self._open_file().is_big_endian else "little"

    @property
    def metadata(self) -> GGUFMetadata:
        """The metadata, in the file's order; each value is decoded when it is asked for."""
        if self._metadata is None:
            self._metadata = GGUFMetadata(self)
        return self._metadata

    @property
    def tensors(self) -> GGUFTensors:
        """The tensors by name, in the file's order."""
        if self._tensors is None:
            self._tensors = GGUFTensors(self)
        return self._tensors

    def close(self) -> None:
        """Lets go of the file; arrays that it handed out stay valid. Closing again does nothing."""
        for part in self._parts:
            part.close()
        self._parts = ()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._parts:
            return f"GGUFFile({self.path!r}, closed)"
        parts = f"{len(self._parts)} parts, " if len(self._parts) > 1 else ""
        n_tensors = sum(part.core.n_tensors for part in self._parts)
        return (
            f"GGUFFile({self.path!r}, version {self.version}, {parts}"
            f"{self._open_file().n_keys} metadata keys, {n_tensors} tensors)"
        )

    def _open_parts(self) -> tuple[OpenPart, ...]:
        if not self._parts:
            raise InputError(f"GGUFFile: {self.path}: it is closed. Open it again.")
        return self._parts

    def _open_file(self) -> _core.gguf.File:
        return self._open_parts()[0].core


class GGUFMetadata(Mapping[str, Any]):
    """The metadata of a GGUFFile.

    Numbers, booleans and strings become Python's own; arrays of numbers read-only numpy arrays
    of the file's dtype and byte order; arrays of strings GGUFStrings. Bytes of a string that are
    not UTF-8 become lone surrogates (errors="surrogateescape").

    Somebody may edit the file in place while it is open; a value that is asked for afterwards
    raises FormatError.

    Cost:
        Arrays of numbers are read once, and handed out as views from then on.
    """

    def __init__(self, owner: GGUFFile) -> None:
        self._owner = owner
        self._keys = dict.fromkeys(owner._open_file().keys())
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def __getitem__(self, key: str) -> Any:
        self._require(key)
        file = self._owner._open_file()
        if key in self._arrays:
            return self._arrays[key].view()
        value = file.value(key)
        if isinstance(value, np.ndarray):
            self._arrays[key] = value
            return value.view()  # which nobody can make writable
        return GGUFStrings(value) if isinstance(value, _core.gguf.StringArray) else value

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def exact(self, key: str) -> GGUFValue:
        """The value with its GGUF type, so that a GGUFWriter writes the same bytes again.

        Args:
            key: one of the keys.

        Returns:
            A GGUFValue; of an array, the type is that of its elements.

        Raises:
            KeyError: there is no such key.
        """
        self._require(key)
        return GGUFValue(self[key], self._owner._open_file().value_type(key))

    def encoded(self, key: str) -> bytes:
        """The value's type and bytes, as they stand in a little-endian file of version 3.

        Args:
            key: one of the keys.

        Returns:
            What follows the key in such a file.

        Raises:
            KeyError: there is no such key.

        Cost:
            One copy; of big-endian files and those of version 1 the value is decoded and encoded.
        """
        self._require(key)
        raw = self._owner._open_file().raw_value(key)
        return encode_value(self.exact(key), key) if raw is None else raw

    def __repr__(self) -> str:
        return f"<GGUFMetadata of {self._owner.path!r}: {len(self)} keys>"

    def _require(self, key: str) -> None:
        if key not in self._keys:
            raise KeyError(key)


class GGUFTensors(Mapping[str, "GGUFTensor"]):
    """The tensors of a GGUFFile by name, in the file's order."""

    def __init__(self, owner: GGUFFile) -> None:
        self._owner = owner
        self._tensors: dict[str, GGUFTensor] = {}
        for number, part in enumerate(owner._open_parts()):
            for index in range(part.core.n_tensors):
                tensor = GGUFTensor(owner, part, number, index=index)
                self._tensors[tensor.name] = tensor

    def __getitem__(self, name: str) -> GGUFTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<GGUFTensors of {self._owner.path!r}: {len(self)} tensors>"


class GGUFTensor:
    """A tensor of a GGUFFile.

    Attributes:
        name: its name.
        type: its QuantType, which is a str.
        shape: in numpy's order.
        nbytes: the size of its data.
        path: the file that holds it, which is one part of a split model.
        offset: where in that file its data begin.

    Example:
        >>> with GGUFFile("phi3-nano.gguf") as f:
        ...     tensor = f.tensors["output.weight"]
        ...     tensor.type, tensor.shape, tensor.data.shape
        (QuantType('F16'), (2048, 256), (2048, 512))
    """

    __slots__ = ("_index", "_owner", "_part", "name", "nbytes", "offset", "path", "shape", "type")

    def __init__(self, owner: GGUFFile, part: OpenPart, number: int, *, index: int) -> None:
        self._owner = owner
        self._part = number
        self._index = index
        name, type, shape, offset, nbytes = part.core.tensor(index)
        self.name = name
        self.type = QuantType(type)
        self.shape = shape
        self.path = part.name
        self.offset = offset
        self.nbytes = nbytes

    @property
    def n_rows(self) -> int:
        """Rows of the last axis."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8[..., row_bytes]: a read-only view of the mapped file, valid after close too.

        Always in little-endian order. Of a big-endian file, a URL or a file object without a
        descriptor it is a copy.

        Raises:
            UnsupportedError: nobody has said how the type lies in a big-endian file.
            FormatError: the file behind a URL or file object has become shorter.

        Cost:
            No copy; pages are read from the disk when they are touched. Should someone truncate the
            file meanwhile, touching them ends the process; read_rows raises instead.
        """
        part = self._open_part()
        view = part.core.tensor_data(self._index)
        if view is None:
            view = self._fetched(part, 0, self.nbytes)
            view = view.reshape(*self.shape[:-1], self.nbytes // self.n_rows)
        if part.core.is_big_endian:
            view = little_endian_bytes(view, self.type)
            view.setflags(write=False)
        return view

    def read_rows(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of the tensor seen as (n_rows, row), copied from the file.

        Args:
            start: the first row.
            stop: the row after the last; None means all.

        Returns:
            uint8[stop - start, row_bytes].

        Raises:
            InputError: the rows lie outside the tensor.
            UnsupportedError: nobody has said how the type lies in a big-endian file.
            FormatError: the file has been written to, or made shorter, since it was opened.
            OSError: it cannot be read.

        Cost:
            One copy, without the GIL.
        """
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise InputError(
                f"GGUFTensor.read_rows: tensor {self.name!r}: rows [{start}, {stop}): "
                f"it has {self.n_rows}."
            )
        row_bytes = self.nbytes // self.n_rows
        return self.read_bytes(start * row_bytes, stop * row_bytes).reshape(-1, row_bytes)

    def read_bytes(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Bytes [start, stop) of the tensor's data, copied from the file.

        Args:
            start: the first byte.
            stop: the byte after the last; None means all.

        Returns:
            uint8[stop - start], in little-endian order.

        Raises:
            InputError: they lie outside the data; or, in a big-endian file, are no whole blocks.
            UnsupportedError: nobody has said how the type lies in a big-endian file.
            FormatError: the file has been written to, or made shorter, since it was opened.
            OSError: it cannot be read.

        Cost:
            One copy, without the GIL.
        """
        stop = self.nbytes if stop is None else stop
        part = self._open_part()
        block_bytes = self.type.block_bytes if part.core.is_big_endian else 1
        if not 0 <= start <= stop <= self.nbytes or start % block_bytes or stop % block_bytes:
            raise InputError(
                f"GGUFTensor.read_bytes: tensor {self.name!r}: bytes [{start}, {stop}): it has "
                f"{self.nbytes}, and they must be multiples of {block_bytes}."
            )
        if part.remote is None:
            out = np.empty(stop - start, np.uint8)
            part.core.read_bytes(self._index, start, out)
        else:
            out = self._fetched(part, start, stop - start).copy()
        return little_endian_bytes(out, self.type) if part.core.is_big_endian else out

    def row_runs(self) -> tuple[_core.pipeline.RowRun, ...] | None:
        """Where the rows lie, for what reads them on threads without Python.

        Returns:
            One run of all rows; None of a file in a big-endian machine's order, or at a URL.
        """
        part = self._open_part()
        if part.remote is not None or part.core.is_big_endian:
            return None
        return (
            _core.pipeline.RowRun(
                source=_core.pipeline.source_of_gguf(part.core),
                offset=self.offset,
                n_rows=self.n_rows,
                type_id=self.type.id,
            ),
        )

    def dequantize(self) -> npt.NDArray[Any]:
        """Turns the data into numbers.

        Returns:
            float32 of the tensor's shape; of I8 ... I64 and F64 a read-only view as they are.

        Raises:
            UnsupportedError or InputError: nothing turns the type into numbers.

        Cost:
            One pass on all threads without the GIL; none for the views.
        """
        dtype = PLAIN_DTYPES.get(self.type)
        if dtype is not None:
            return self.data.view(dtype).reshape(self.shape)
        return dequantize(self.data, self.type).reshape(self.shape)

    def _open_part(self) -> OpenPart:
        return self._owner._open_parts()[self._part]

    def _fetched(self, part: OpenPart, start: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Bytes of a tensor that is not mapped."""
        assert part.remote is not None
        return np.frombuffer(part.remote.read_at(self.offset + start, nbytes), np.uint8)

    def __repr__(self) -> str:
        return f"GGUFTensor({self.name!r}, {self.type}, shape {self.shape}, {self.nbytes} bytes)"
