"""The files of a model on their way: which tensor lies in which, and how large they will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phiggml.errors import InputError
from phiggml.gguf_part import GGUFPart, TensorInfo, aligned
from phiggml.gguf_writer_metadata import (
    KEPT_SPLIT_KEYS,
    MAX_ENTRIES,
    SPLIT_KEYS,
    WriterMetadata,
    encoded_size,
    split_pairs,
)

__all__ = ["GGUFParts", "SplitRules", "planned_sizes"]

_MAX_PARTS = 65535  # split.count has 16 bits


@dataclass(frozen=True)
class SplitRules:
    """Where a file of a split model ends.

    Attributes:
        max_bytes: before its tensors would take more; a larger tensor has a file of its own.
        max_tensors: when it has so many.
        counts: how many tensors each file has, perhaps none; None where nobody asked for it.

    Raises:
        InputError: a number is not positive.
    """

    max_bytes: int | None = None
    max_tensors: int | None = None
    counts: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_tensors"):
            value = getattr(self, name)
            if value is not None and not _is_count(value, least=1):
                raise InputError(
                    f"GGUFWriter: split_{name}: {value!r}: it must be a positive integer, or None."
                )
        if self.counts is not None and not (
            self.counts and all(_is_count(count, least=0) for count in self.counts)
        ):
            raise InputError(
                f"GGUFWriter: split_counts: {self.counts!r}: one number for each file, none of "
                "them negative."
            )

    @property
    def split(self) -> bool:
        """Whether there may be several files, named as such."""
        return not (self.max_bytes is None and self.max_tensors is None and self.counts is None)


def _is_count(value: object, *, least: int) -> bool:
    return (
        isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least
    )


class GGUFParts:
    """The files that a writer makes, in their order; there is always one.

    Args:
        path: what messages call the model.
        metadata: of the whole model.
        rules: where files end.
    """

    def __init__(self, path: str, metadata: WriterMetadata, rules: SplitRules) -> None:
        self._path = path
        self._metadata = metadata
        self._rules = rules
        self.parts = [GGUFPart(metadata.alignment)]
        self._n_tensors = 0

    def place(self, info: TensorInfo) -> tuple[GGUFPart, int]:
        """A place in the last file, or in a new one when that is full.

        Returns:
            The file, and the tensor's offset in its data.
        """
        part, rules = self.parts[-1], self._rules
        nbytes = part.nbytes + aligned(info.nbytes, self._metadata.alignment)
        too_large = rules.max_bytes is not None and nbytes > rules.max_bytes
        full = rules.split and part.n_tensors in (rules.max_tensors, MAX_ENTRIES)
        if part.n_tensors > 0 and (too_large or full):
            self._append()
        while rules.counts is not None and self.parts[-1].n_tensors == self._wanted(rules.counts):
            self._append()
        self._n_tensors += 1
        return self.parts[-1], self.parts[-1].add(info)

    def _wanted(self, counts: Sequence[int]) -> int:
        """How many tensors the last file is to have."""
        if len(self.parts) > len(counts):
            raise InputError(
                f"GGUFWriter: {self._path}: split_counts has room for {sum(counts)} tensors, and "
                "this is one more."
            )
        return counts[len(self.parts) - 1]

    def _append(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise InputError(
                f"GGUFWriter: {self._path}: a model has at most {_MAX_PARTS} files. "
                "Allow larger ones."
            )
        self.parts.append(GGUFPart(self._metadata.alignment))

    def pairs(self, number: int) -> dict[str, bytes]:
        """The metadata of a file, encoded."""
        if not self._rules.split:
            return self._metadata.written()
        keys = SPLIT_KEYS if self._rules.counts is None else KEPT_SPLIT_KEYS
        count = len(self.parts)
        return split_pairs(
            self._metadata, keys, number=number, count=count, n_tensors=self._n_tensors
        )

    def pairs_bytes(self, part: GGUFPart) -> int:
        """What the metadata of a file take in it."""
        return encoded_size(self.pairs(0 if part is self.parts[0] else 1))


def planned_sizes(
    metadata: Mapping[str, Any], tensors: Iterable[TensorInfo], rules: SplitRules
) -> tuple[int, ...]:
    """The sizes of the files that a GGUFWriter would make, in bytes.

    Args:
        metadata: as GGUFWriter.metadata takes them.
        tensors: all of them, in order, each declared before the first one's data come.
        rules: where files end.

    Raises:
        InputError: the format cannot hold them.
    """
    written = WriterMetadata()
    for key, value in metadata.items():
        written[key] = value
    parts = GGUFParts("the plan", written, rules)
    for info in tensors:
        parts.place(info)
    return tuple(part.size(parts.pairs_bytes(part)) for part in parts.parts)
