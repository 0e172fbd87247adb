"""One file on its way: room for a header, and tensor data behind it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from phiggml.atomic_file import AtomicFile
from phiggml.errors import InputError
from phiggml.gguf_tensor_data import little_endian_pieces
from phiggml.gguf_value import encode_string
from phiggml.gguf_writer_metadata import MAX_ENTRIES, PADDING_KEY, encoded_size, padding_value
from phiggml.quant import QuantType

__all__ = ["GGUFPart", "TensorInfo", "aligned"]

_VERSION = 3
_COUNTS_BYTES = 24  # magic, version, number of tensors, number of pairs
_SLACK = 128 << 10
_PAGE = 4096
_MAX_HEADER_BYTES = 128 << 20  # what GGUFFile reads


def aligned(nbytes: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


@dataclass(frozen=True)
class TensorInfo:
    """What the header says about a tensor, but for its offset."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row of the last axis."""
        return self.type.row_bytes(self.shape[-1])

    def encoded(self, offset: int) -> bytes:
        """As it stands in the header."""
        n_dims = len(self.shape)
        numbers = (n_dims, *reversed(self.shape), self.type.id, offset)
        return encode_string(self.name, "GGUFWriter") + struct.pack(f"<I{n_dims}QIQ", *numbers)


class GGUFPart:
    """One output file. Tensors have their places before their data come, in any order.

    Args:
        alignment: of the tensors' data, in bytes.

    Attributes:
        n_tensors: how many have a place here.
        nbytes: what their data take, padded.
    """

    def __init__(self, alignment: int) -> None:
        self.n_tensors = 0
        self.nbytes = 0
        self._alignment = alignment
        self._infos: list[bytes] = []
        self._infos_bytes = 0
        self._room = 0
        self._slack = _SLACK
        self._file: AtomicFile | None = None

    def add(self, tensor: TensorInfo) -> int:
        """Gives a tensor its place behind the others.

        Returns:
            Its offset within the data.
        """
        offset = self.nbytes
        info = tensor.encoded(offset)
        self._infos.append(info)
        self._infos_bytes += len(info)
        self.n_tensors += 1
        self.nbytes += aligned(tensor.nbytes, self._alignment)
        return offset

    @property
    def file(self) -> AtomicFile | None:
        """The temporary file, once it has been begun."""
        return self._file

    def size(self, pairs_bytes: int) -> int:
        """Of the whole file, in bytes, where all is known before the first data come."""
        return self._wanted_room(pairs_bytes, spare=False) + self.nbytes

    def begin(self, file: AtomicFile, pairs_bytes: int, *, spare: bool) -> None:
        """Begins the file.

        Args:
            file: a new one.
            pairs_bytes: what the metadata take, as far as they are known.
            spare: whether to leave room for more tensors and metadata.
        """
        self._file = file
        self._room = self._wanted_room(pairs_bytes, spare=spare)

    def rest(self) -> None:
        """Closes the temporary file until it is used again, where that can be."""
        if self._file is not None:
            self._file.rest()

    def make_room(self, pairs_bytes: int) -> None:
        """Moves the data when the header has outgrown its room, with some to spare."""
        if self._header_bytes(pairs_bytes) > self._room:
            # Doubled, so that data are moved a few times and not many.
            self._slack *= 2
            self._move_data(self._wanted_room(pairs_bytes, spare=True))

    def write(self, offset: int, array: npt.NDArray[Any]) -> None:
        """Writes data at an offset; the array may have any layout."""
        file = self._require_file()
        file.seek(self._room + offset)
        for piece in little_endian_pieces(array):
            file.write(piece)

    def finish(self, pairs: Mapping[str, bytes]) -> AtomicFile:
        """Writes the header; what it leaves of its room becomes a pair of its own.

        Returns:
            The whole file, to be published.
        """
        file = self._require_file()
        if len(pairs) > MAX_ENTRIES:
            raise InputError(
                f"GGUFWriter: {len(pairs)} metadata keys: GGUFFile reads up to {MAX_ENTRIES}. "
                "Leave some out."
            )
        size = self._header_bytes(encoded_size(pairs))
        padding = self._room - size - encoded_size({PADDING_KEY: padding_value(0)})
        padded = (
            padding >= 0
            and aligned(size, self._alignment) != self._room <= _MAX_HEADER_BYTES
            and len(pairs) < MAX_ENTRIES
        )
        if not padded:
            self._move_data(aligned(size, self._alignment))
        file.resize(self._room + self.nbytes)
        file.seek(0)
        n_pairs = len(pairs) + padded
        file.write(b"GGUF" + struct.pack("<IQQ", _VERSION, self.n_tensors, n_pairs))
        if padded:
            file.write(encode_string(PADDING_KEY, "GGUFWriter") + padding_value(padding))
        encoded = [part for k, v in pairs.items() for part in (encode_string(k, "GGUFWriter"), v)]
        file.write(b"".join(encoded + self._infos))
        file.write_zeros(self._room - file.position)
        return file

    def discard(self) -> None:
        """Removes the temporary file."""
        if self._file is not None:
            self._file.discard()

    def _require_file(self) -> AtomicFile:
        if self._file is None:
            raise InputError("GGUFWriter: its file was not begun.")
        return self._file

    def _header_bytes(self, pairs_bytes: int) -> int:
        nbytes = _COUNTS_BYTES + pairs_bytes + self._infos_bytes
        if nbytes > _MAX_HEADER_BYTES:
            raise InputError(
                f"GGUFWriter: the header takes {nbytes} bytes: GGUFFile reads up to "
                f"{_MAX_HEADER_BYTES}. Leave out some of the metadata."
            )
        return nbytes

    def _wanted_room(self, pairs_bytes: int, *, spare: bool) -> int:
        size = self._header_bytes(pairs_bytes)
        if spare:
            size = aligned(size + self._slack, _PAGE)
        return aligned(size, self._alignment)

    def _move_data(self, room: int) -> None:
        if room == self._room:
            return
        file = self._require_file()
        file.resize(max(room, self._room) + self.nbytes)
        file.move(self._room, room, self.nbytes)
        self._room = room
