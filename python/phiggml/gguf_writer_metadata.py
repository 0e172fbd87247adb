"""Metadata on their way into a file: encoded when they are set, written when it is closed."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phiggml.errors import InputError
from phiggml.gguf_value import GGUFValue, encode_string, encode_value

if TYPE_CHECKING:
    from phiggml.gguf import GGUFMetadata

__all__ = [
    "ALIGNMENT_KEY",
    "DEFAULT_ALIGNMENT",
    "KEPT_SPLIT_KEYS",
    "MAX_ENTRIES",
    "MAX_KEY_BYTES",
    "MAX_TENSOR_NAME_BYTES",
    "PADDING_KEY",
    "SPLIT_KEYS",
    "WriterMetadata",
    "encoded_size",
    "padding_value",
    "require_name",
    "split_pairs",
]

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
PADDING_KEY = "phiggml.padding"  # what fills a header's room is the writer's alone
MAX_KEY_BYTES = 65535  # the format's limit
MAX_ENTRIES = 1 << 18  # tensors of a file, and keys, that GGUFFile reads
MAX_TENSOR_NAME_BYTES = 63  # ggml keeps 64 with the closing NUL
_STRING_ID = 8
# llama-gguf-split's, in its order.
SPLIT_KEYS = ("split.no", "split.tensors.count", "split.count")
# llama-quantize's, which keeps the files that there are.
KEPT_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


class WriterMetadata(MutableMapping[str, Any]):
    """The metadata to be written. Values are encoded when set: a fault shows where it was made.

    Attributes:
        encoded: key -> type and value as they will stand in the file.
        alignment: of the tensors' data, in bytes.
        alignment_fixed: whether data have been written that rely on it.
        closed: whether the header has been written.
    """

    def __init__(self) -> None:
        self.encoded: dict[str, bytes] = {}
        self.alignment = DEFAULT_ALIGNMENT
        self.alignment_fixed = False
        self.closed = False
        self._values: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self._require_open()
        what = f"GGUFWriter.metadata[{key!r}]"
        require_name(key, what, MAX_KEY_BYTES)
        if len(self._values) == MAX_ENTRIES and key not in self._values:
            raise InputError(f"{what}: there are {MAX_ENTRIES} keys, as many as GGUFFile reads.")
        if key == ALIGNMENT_KEY:
            value = GGUFValue(self._aligned(_checked_alignment(value, what)), "UINT32")
        self.encoded[key] = encode_value(value, what)
        self._values[key] = _frozen_copy(value.value if isinstance(value, GGUFValue) else value)

    def __delitem__(self, key: str) -> None:
        self._require_open()
        if key == ALIGNMENT_KEY and key in self._values:
            self._aligned(DEFAULT_ALIGNMENT)
        del self._values[key]
        del self.encoded[key]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def copy(self, metadata: GGUFMetadata, skip: Collection[str]) -> None:
        """Takes over another file's metadata as they stand there, but for `skip`."""
        self._require_open()
        for key in metadata:
            if key in skip or key == PADDING_KEY:
                continue
            value = metadata[key]
            if key == ALIGNMENT_KEY:
                self._aligned(int(value))
            self.encoded[key] = metadata.encoded(key)
            self._values[key] = value

    def written(self) -> dict[str, bytes]:
        """What goes into the file: all but a padding that was copied from another."""
        return {key: value for key, value in self.encoded.items() if key != PADDING_KEY}

    def _aligned(self, alignment: int) -> int:
        if self.alignment_fixed and alignment != self.alignment:
            raise InputError(
                f"GGUFWriter.metadata[{ALIGNMENT_KEY!r}]: {alignment}: tensor data have been "
                f"written at multiples of {self.alignment}. Set it before they are."
            )
        self.alignment = alignment
        return alignment

    def _require_open(self) -> None:
        if self.closed:
            raise InputError(
                "GGUFWriter.metadata: the header has been written. Set metadata before close."
            )


def split_pairs(
    metadata: WriterMetadata, keys: Sequence[str], *, number: int, count: int, n_tensors: int
) -> dict[str, bytes]:
    """The metadata of one file of a split model: the first has all, the others what they need.

    Args:
        metadata: of the model.
        keys: SPLIT_KEYS in the order in which they are to stand.
        number: of the file.
        count: of files.
        n_tensors: of the model.
    """
    if number == 0:
        pairs = {k: v for k, v in metadata.written().items() if k not in SPLIT_KEYS}
    elif metadata.alignment != DEFAULT_ALIGNMENT:
        pairs = {ALIGNMENT_KEY: encode_value(GGUFValue(metadata.alignment, "UINT32"), "split")}
    else:
        pairs = {}
    values = {
        "split.no": GGUFValue(number, "UINT16"),
        "split.tensors.count": GGUFValue(n_tensors, "INT32"),
        "split.count": GGUFValue(count, "UINT16"),
    }
    for key in keys:
        pairs[key] = encode_value(values[key], f"GGUFWriter: {key}")
    return pairs


def encoded_size(pairs: Mapping[str, bytes]) -> int:
    """What key-value pairs take in a file, in bytes."""
    return sum(len(encode_string(key, "GGUFWriter")) + len(value) for key, value in pairs.items())


def padding_value(nbytes: int) -> bytes:
    """Type and value of a padding: a text of blanks, for readers are slow with large arrays."""
    return struct.pack("<IQ", _STRING_ID, nbytes) + b" " * nbytes


def require_name(name: str, what: str, longest: int) -> None:
    """Checks a key or a tensor's name."""
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
