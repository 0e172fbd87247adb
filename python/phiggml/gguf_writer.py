"""Writing GGUF files: beside the target, renamed when whole."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.atomic_file import AtomicFile, require_writable_name
from phiggml.errors import InputError
from phiggml.gguf_tensor_data import checked_shape, little_endian_contiguous, tensor_data
from phiggml.gguf_value import GGUFValue, encode_string, encode_value
from phiggml.quant import QuantizedArray, QuantType

__all__ = ["GGUFWriter"]

_VERSION = 3
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_KEY_BYTES = 65535  # the format's limit
_MAX_NAME_BYTES = 63  # ggml keeps 64 with the closing NUL


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file to be; `data` is None when write_rows brings it."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    nbytes: int
    data: npt.NDArray[Any] | None

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])


class _WriterMetadata(MutableMapping[str, Any]):
    """The metadata to be written. Values are encoded when set: a fault shows where it was made."""

    def __init__(self) -> None:
        self.encoded: dict[str, bytes] = {}
        self.frozen = False
        self.alignment = _DEFAULT_ALIGNMENT
        self._values: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self._require_open()
        what = f"GGUFWriter.metadata[{key!r}]"
        _encode_name(key, what, _MAX_KEY_BYTES)
        if key == _ALIGNMENT_KEY:
            self.alignment = _checked_alignment(value, what)
            value = GGUFValue(self.alignment, "UINT32")
        self.encoded[key] = encode_value(value, what)
        self._values[key] = _frozen_copy(value.value if isinstance(value, GGUFValue) else value)

    def __delitem__(self, key: str) -> None:
        self._require_open()
        del self._values[key]
        del self.encoded[key]
        if key == _ALIGNMENT_KEY:
            self.alignment = _DEFAULT_ALIGNMENT

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def _require_open(self) -> None:
        if self.frozen:
            raise InputError(
                "GGUFWriter.metadata: the header has been written: "
                "metadata must be set before the first write_rows and before close."
            )


class GGUFWriter:
    """Writes a GGUF file, which appears under its name only when it is whole.

    `metadata` takes bool, int (UINT32 where it fits, else INT32, UINT64, INT64), float (FLOAT32),
    str, sequences of one of these (ints INT32, floats FLOAT32), numpy arrays and scalars (their
    dtype) and GGUFValue (the type it names).

    Args:
        path: the file to be.
        overwrite: whether it may replace an existing file.

    Raises:
        InputError: a name, value, shape or dtype that the format cannot hold; a call out of order.
        FileExistsError: the target exists and overwrite is False.
        IsADirectoryError, FileNotFoundError: the target is a folder, or in none that exists.
        OSError: the file system refuses; the temporary file is removed.

    Cost:
        Arrays given to add_tensor are kept, not copied, and written at close. Writes release the
        GIL.

    Source:
        The GGUF specification, version 3; ggml's limits on names and dimensions.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with GGUFWriter(pathlib.Path(folder) / "small.gguf") as w:
        ...         w.metadata["general.architecture"] = "phi3"
        ...         w.add_tensor("ones", np.ones((2, 4), np.float32))
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = os.fspath(path)
        # A link is written through, as open() would.
        self._target = Path(self.path).resolve()
        self._overwrite = overwrite
        require_writable_name(self._target, overwrite=overwrite)
        self._metadata = _WriterMetadata()
        self._tensors: dict[str, _Tensor] = {}
        self._output: AtomicFile | None = None
        self._pending: Iterator[_Tensor] = iter(())
        self._current: _Tensor | None = None
        self._missing = 0  # bytes that the current tensor still lacks
        self._closed = False

    @property
    def metadata(self) -> MutableMapping[str, Any]:
        """The metadata to be written, in the order in which they are set."""
        return self._metadata

    def add_tensor(
        self, name: str, array: npt.ArrayLike | QuantizedArray, type: str | None = None
    ) -> None:
        """Adds a tensor.

        Args:
            name: 1 to 63 bytes of UTF-8, not used before in this file.
            array: float32, float16, bfloat16 (ml_dtypes), float64, int8 ... int64 of 1 to 4 axes,
                in any layout; a QuantizedArray; or, with `type`, uint8[..., row_bytes] of that
                type's bytes or uint16 bits of "BF16".
            type: the quant type to convert a float array to; None keeps the array's own.

        Raises:
            InputError: the name, dtype or shape cannot be written, or quantize refuses the values.

        Cost:
            Keeps a reference; changes made to the array before close are written. With `type` a
            float array is quantized now, on all threads.
        """
        self._require_open("add_tensor")
        what = f"GGUFWriter.add_tensor: tensor {name!r}"
        if isinstance(array, QuantizedArray):
            if type is not None and QuantType(type) != array.type:
                raise InputError(
                    f"{what}: the array is {array.type}, not {QuantType(type)}. "
                    "Dequantize it first to convert it."
                )
            data, tensor_type, shape = array.data, QuantType(array.type), array.shape
        else:
            data, tensor_type, shape = tensor_data(np.asarray(array), type, what)
        self._declare(name, tensor_type, shape, data, what)

    def add_tensor_stream(self, name: str, shape: tuple[int, ...], type: str) -> None:
        """Declares a tensor whose bytes write_rows will bring, after those declared before it.

        Args:
            name: 1 to 63 bytes of UTF-8, not used before in this file.
            shape: in numpy's order.
            type: its quant type.

        Raises:
            InputError: the name, shape or type cannot be written, or the header has been.
        """
        self._require_open("add_tensor_stream")
        what = f"GGUFWriter.add_tensor_stream: tensor {name!r}"
        self._declare(name, QuantType(type), tuple(shape), None, what)

    def write_rows(self, data: npt.NDArray[np.uint8]) -> None:
        """Appends whole rows to the current of the tensors that were declared by add_tensor_stream.

        The first call writes the header: metadata and declarations are frozen from then on.

        Args:
            data: uint8[..., row_bytes], C-contiguous.

        Raises:
            InputError: no tensor waits for rows, these are no whole rows, or more than it lacks.
            OSError: the file system refuses; the temporary file is removed.

        Cost:
            No copy; the GIL is released in each write.
        """
        if self._closed:
            raise InputError("GGUFWriter.write_rows: the writer is closed.")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            raise InputError("GGUFWriter.write_rows: data must be an array of uint8.")
        if not data.flags.c_contiguous:
            raise InputError(
                "GGUFWriter.write_rows: data must be C-contiguous. Pass np.ascontiguousarray(data)."
            )
        with self._discarding_on_failure():
            self._begin()
        current = self._current
        if current is None:
            raise InputError("GGUFWriter.write_rows: no tensor waits for rows; all are complete.")
        if data.nbytes % current.row_bytes != 0 or data.nbytes > self._missing:
            raise InputError(
                f"GGUFWriter.write_rows: tensor {current.name!r}: {data.nbytes} bytes were given: "
                f"it takes whole rows of {current.row_bytes} bytes and lacks {self._missing}."
            )
        with self._discarding_on_failure():
            self._require_output().write(data)
            self._missing -= data.nbytes
            if self._missing == 0:
                self._advance()

    def close(self) -> None:
        """Writes what is left, and gives the file its name. Closing again does nothing.

        Raises:
            InputError: a tensor lacks rows.
            OSError: the file system refuses. Either way nothing is left behind.
        """
        if self._closed:
            return
        with self._discarding_on_failure():
            self._begin()
            if self._current is not None:
                raise InputError(
                    f"GGUFWriter.close: tensor {self._current.name!r}: it lacks {self._missing} of "
                    f"its {self._current.nbytes} bytes. Bring them by write_rows; no file was made."
                )
            self._require_output().publish(self._target, overwrite=self._overwrite)
        self._end()

    def discard(self) -> None:
        """Gives the file up: nothing is left behind. After close it does nothing."""
        if self._output is not None:
            self._output.discard()
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
            f"{len(self._tensors)} tensors)"
        )

    def _require_open(self, operation: str) -> None:
        if self._closed or self._output is not None:
            reason = "the writer is closed" if self._closed else "the header has been written"
            raise InputError(f"GGUFWriter.{operation}: {reason}.")

    def _require_output(self) -> AtomicFile:
        if self._output is None:
            raise InputError("GGUFWriter: the writer is closed.")
        return self._output

    def _declare(
        self,
        name: str,
        tensor_type: QuantType,
        shape: tuple[int, ...],
        data: npt.NDArray[Any] | None,
        what: str,
    ) -> None:
        _encode_name(name, what, _MAX_NAME_BYTES)
        if name in self._tensors:
            raise InputError(f"{what}: there is a tensor of this name already.")
        shape = checked_shape(shape, tensor_type, what)
        nbytes = math.prod(shape[:-1]) * tensor_type.row_bytes(shape[-1])
        self._tensors[name] = _Tensor(name, tensor_type, shape, nbytes, data)

    def _begin(self) -> None:
        """Writes the header, once, and the tensors before the first that write_rows brings."""
        if self._output is not None:
            return
        header = self._header()
        self._metadata.frozen = True
        self._output = AtomicFile(self._target.parent)
        self._output.write(np.frombuffer(header, np.uint8))
        self._output.pad(self._metadata.alignment)
        self._pending = iter(self._tensors.values())
        self._advance()

    def _advance(self) -> None:
        output = self._require_output()
        output.pad(self._metadata.alignment)
        for tensor in self._pending:
            if tensor.data is None:
                self._current, self._missing = tensor, tensor.nbytes
                return
            output.write(little_endian_contiguous(tensor.data))
            output.pad(self._metadata.alignment)
        self._current, self._missing = None, 0

    def _header(self) -> bytes:
        encoded = self._metadata.encoded
        parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(self._tensors), len(encoded))]
        for key, value in encoded.items():
            parts += [encode_string(key, "GGUFWriter"), value]
        offset = 0
        alignment = self._metadata.alignment
        for tensor in self._tensors.values():
            parts.append(encode_string(tensor.name, "GGUFWriter"))
            n_dims = len(tensor.shape)
            parts.append(
                struct.pack(
                    f"<I{n_dims}QIQ", n_dims, *reversed(tensor.shape), tensor.type.id, offset
                )
            )
            offset += -(-tensor.nbytes // alignment) * alignment
        return b"".join(parts)

    def _end(self) -> None:
        self._closed = True
        self._metadata.frozen = True
        self._output = None
        self._tensors = {}
        self._pending = iter(())
        self._current = None

    @contextlib.contextmanager
    def _discarding_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


def _encode_name(name: str, what: str, longest: int) -> None:
    if not isinstance(name, str):
        raise InputError(f"{what}: a name must be str, not {type(name).__name__}.")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what}: a name must be UTF-8, without surrogates.") from error
    if not 1 <= len(encoded) <= longest or b"\0" in encoded:
        raise InputError(
            f"{what}: a name must have 1 to {longest} bytes, none of them NUL; "
            f"this has {len(encoded)}."
        )


def _checked_alignment(value: Any, what: str) -> int:
    if isinstance(value, GGUFValue):
        if value.type != "UINT32":
            raise InputError(f"{what}: its type must be UINT32, not {value.type}.")
        value = value.value
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{what}: {value!r}: it must be an integer.")
    alignment = int(value)
    if not 1 <= alignment < 1 << 32 or alignment & (alignment - 1):
        raise InputError(f"{what}: {alignment}: it must be a power of two below 2^32.")
    return alignment


def _frozen_copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.setflags(write=False)
        return value
    return tuple(value) if isinstance(value, list) else value
