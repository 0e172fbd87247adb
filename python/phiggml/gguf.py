"""GGUF files: metadata decoded on access, tensors as views of the mapped file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.gguf_value import GGUFStrings, GGUFValue
from phiggml.gguf_writer import GGUFWriter
from phiggml.quant import QuantType, dequantize

__all__ = ["GGUFFile", "GGUFMetadata", "GGUFStrings", "GGUFTensor", "GGUFValue", "GGUFWriter"]

# Tensors of these hold numbers that numpy has a dtype for, and that nobody quantizes.
_PLAIN_DTYPES = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}


class GGUFFile:
    """A GGUF file, checked when it is opened and mapped read-only.

    Args:
        path: the file.

    Raises:
        FormatError: the file is no valid GGUF; .offset says where.
        UnsupportedError: it is big-endian.
        InputError: the path holds NUL.
        OSError: it cannot be opened.

    Cost:
        One pass over the header without the GIL; strings are skipped, tensor data not touched.

    Source:
        The GGUF specification, versions 1 to 3; ggml's limits on names, dimensions and types.

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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        encoded = os.fsencode(self.path)
        if b"\0" in encoded:
            raise InputError(f"GGUFFile: {self.path!r}: a path cannot hold NUL.")
        self._file: _core.gguf.File | None = _core.gguf.File(encoded)
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
    def data_offset(self) -> int:
        """Where the tensor data begin, in bytes."""
        return self._open_file().data_offset

    @property
    def nbytes(self) -> int:
        """The size of the file, in bytes."""
        return self._open_file().size

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
        self._file = None

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
        if self._file is None:
            return f"GGUFFile({self.path!r}, closed)"
        return (
            f"GGUFFile({self.path!r}, version {self.version}, {self._file.n_keys} metadata keys, "
            f"{self._file.n_tensors} tensors)"
        )

    def _open_file(self) -> _core.gguf.File:
        if self._file is None:
            raise InputError(f"GGUFFile: {self.path}: it is closed. Open it again.")
        return self._file


class GGUFMetadata(Mapping[str, Any]):
    """The metadata of a GGUFFile.

    Numbers, booleans and strings become Python's own; arrays of numbers read-only numpy arrays
    of the file's dtype; arrays of strings GGUFStrings. Bytes of a string that are not UTF-8 become
    lone surrogates (errors="surrogateescape").

    Cost:
        Arrays of numbers are copied at each access.
    """

    def __init__(self, owner: GGUFFile) -> None:
        self._owner = owner
        self._keys = dict.fromkeys(owner._open_file().keys())

    def __getitem__(self, key: str) -> Any:
        self._require(key)
        value = self._owner._open_file().value(key)
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

    def __repr__(self) -> str:
        return f"<GGUFMetadata of {self._owner.path!r}: {len(self)} keys>"

    def _require(self, key: str) -> None:
        if key not in self._keys:
            raise KeyError(key)


class GGUFTensors(Mapping[str, "GGUFTensor"]):
    """The tensors of a GGUFFile by name, in the file's order."""

    def __init__(self, owner: GGUFFile) -> None:
        self._owner = owner
        tensors = (GGUFTensor(owner, index) for index in range(owner._open_file().n_tensors))
        self._tensors = {tensor.name: tensor for tensor in tensors}

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
        offset: where in the file they begin.

    Example:
        >>> with GGUFFile("phi3-nano.gguf") as f:
        ...     tensor = f.tensors["output.weight"]
        ...     tensor.type, tensor.shape, tensor.data.shape
        (QuantType('F16'), (2048, 256), (2048, 512))
    """

    __slots__ = ("_index", "_owner", "name", "nbytes", "offset", "shape", "type")

    def __init__(self, owner: GGUFFile, index: int) -> None:
        self._owner = owner
        self._index = index
        name, type, shape, offset, nbytes = owner._open_file().tensor(index)
        self.name = name
        self.type = QuantType(type)
        self.shape = shape
        self.offset = offset
        self.nbytes = nbytes

    @property
    def n_rows(self) -> int:
        """Rows of the last axis."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8[..., row_bytes]: a read-only view of the mapped file, valid after close too.

        Cost:
            No copy; pages are read from the disk when they are touched. Should someone truncate the
            file meanwhile, touching them ends the process; read_rows raises instead.
        """
        return self._owner._open_file().tensor_data(self._index)

    def read_rows(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of the tensor seen as (n_rows, row), copied from the file.

        Args:
            start: the first row.
            stop: the row after the last; None means all.

        Returns:
            uint8[stop - start, row_bytes].

        Raises:
            InputError: the rows lie outside the tensor.
            FormatError: the file has become shorter since it was opened.
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
        out = np.empty((stop - start, self.nbytes // self.n_rows), np.uint8)
        self._owner._open_file().read_tensor(self._index, start, out)
        return out

    def dequantize(self) -> npt.NDArray[Any]:
        """Turns the data into numbers.

        Returns:
            float32 of the tensor's shape; of I8 ... I64 and F64 a read-only view as they are.

        Raises:
            UnsupportedError or InputError: nothing turns the type into numbers.

        Cost:
            One pass on all threads without the GIL; none for the views.
        """
        dtype = _PLAIN_DTYPES.get(self.type)
        if dtype is not None:
            return self.data.view(dtype).reshape(self.shape)
        return dequantize(self.data, self.type).reshape(self.shape)

    def __repr__(self) -> str:
        return f"GGUFTensor({self.name!r}, {self.type}, shape {self.shape}, {self.nbytes} bytes)"
