"""The header of a GGUF file taken apart: metadata and descriptions of tensors, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from phiggml.gguf import GGUFFile
from phiggml.gguf_part import TensorInfo, aligned
from phiggml.gguf_value import encode_string
from phiggml.gguf_writer_metadata import PADDING_KEY, padding_value

__all__ = ["Header", "Item", "is_native", "layouts", "read_header"]

_STRING_TYPE = struct.pack("<I", 8)
_STRING_HEAD_BYTES = 12  # type and length
_COUNTS_END = 24  # magic number, version, number of tensors, number of keys


class Item(NamedTuple):
    """A metadata entry or the description of a tensor.

    Attributes:
        name: its key or name.
        body: the bytes that follow the name: type and value; or dimensions, type and offset.
    """

    name: str
    body: bytes

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return 8 + len(self.name.encode()) + len(self.body)


@dataclass(frozen=True)
class Header:
    """A header of version 2 or 3, little-endian.

    Attributes:
        version: of the format.
        alignment: what its padded size is a multiple of.
        entries: the metadata, in the file's order.
        tensors: the descriptions of tensors, in the file's order.
    """

    version: int
    alignment: int
    entries: tuple[Item, ...]
    tensors: tuple[Item, ...]

    @property
    def nbytes(self) -> int:
        """Its size, without what aligns the data."""
        return _COUNTS_END + sum(item.nbytes for item in (*self.entries, *self.tensors))

    @property
    def data_offset(self) -> int:
        """Its size, with what aligns the data."""
        return aligned(self.nbytes, self.alignment)

    def encode(self) -> bytes:
        """Its bytes, without what aligns the data."""
        counts = struct.pack("<4sIQQ", b"GGUF", self.version, len(self.tensors), len(self.entries))
        parts = [counts]
        for item in (*self.entries, *self.tensors):
            parts += [encode_string(item.name, "GGUF header"), item.body]
        return b"".join(parts)

    def padding(self) -> range:
        """Where the bytes of its padding lie; empty where there is none."""
        position = _COUNTS_END
        for item in self.entries:
            position += item.nbytes
            if _is_padding(item):
                return range(position - _room_of(item), position)
        return range(0)


def read_header(file: GGUFFile) -> Header:
    """The header of one file; of version 1 or in big-endian order, what it is in version 3."""
    entries = tuple(Item(key, file.metadata.encoded(key)) for key in file.metadata)
    tensors = []
    for tensor in file.tensors.values():
        info = TensorInfo(tensor.name, tensor.type, tensor.shape, tensor.nbytes)
        encoded = info.encoded(tensor.offset - file.data_offset)
        tensors.append(Item(tensor.name, encoded[len(encode_string(tensor.name, "header")) :]))
    return Header(file.version if is_native(file) else 3, file.alignment, entries, tuple(tensors))


def is_native(file: GGUFFile) -> bool:
    """Whether the file's bytes are those of such a header."""
    return file.byte_order == "little" and file.version >= 2


def layouts(old: Header, new: Header, n_added: int) -> Iterator[Header]:
    """Orders of the entries of `new` that may allow to write it over `old`, the likeliest first.

    Args:
        old: the header in the file.
        new: the same after an edit.
        n_added: how many entries at the end of `new` the edit has added.

    Yields:
        Headers that mean what `new` does. Where there is padding, it takes up the
        difference in size, so that what lies behind the edit need not move; it may stand on the
        other side of what changed, and added entries stand next to it. At last `new` itself.
    """
    padding = next((item for item in new.entries if _is_padding(item)), None)
    if padding is not None:
        others = _without_padding(new.entries)
        kept, added = others[: len(others) - n_added], others[len(others) - n_added :]
        room = _room_of(padding) + old.nbytes - new.nbytes
        first, last = _changed(_without_padding(old.entries), kept)
        places = (_place_of_padding(new.entries), first, last)
        for place in dict.fromkeys(places if room >= 0 else ()):
            for split in (0, len(added)) if added else (0,):
                entries = [*kept[:place], *added[:split], _padding_of(room)]
                entries += [*added[split:], *kept[place:]]
                yield replace(new, entries=tuple(entries))
    yield new


def _without_padding(entries: Sequence[Item]) -> list[Item]:
    return [item for item in entries if not _is_padding(item)]


def _place_of_padding(entries: Sequence[Item]) -> int:
    return next(i for i, item in enumerate(entries) if _is_padding(item))


def _changed(old: Sequence[Item], new: Sequence[Item]) -> tuple[int, int]:
    """The part of `new` outside of which it begins and ends as `old` does."""
    shortest = min(len(old), len(new))
    first = 0
    while first < shortest and old[first] == new[first]:
        first += 1
    behind = 0
    while behind < shortest - first and old[-1 - behind] == new[-1 - behind]:
        behind += 1
    return first, len(new) - behind


def _padding_of(room: int) -> Item:
    return Item(PADDING_KEY, padding_value(room))


def _is_padding(item: Item) -> bool:
    return item.name == PADDING_KEY and item.body.startswith(_STRING_TYPE)


def _room_of(padding: Item) -> int:
    return len(padding.body) - _STRING_HEAD_BYTES
