"""Hashes of what a GGUF file says, tensor by tensor and as a whole, in any layout of its bytes."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFMetadata
from phiggml.gguf_piece import blocks_in_pieces
from phiggml.gguf_text import one_line
from phiggml.gguf_writer_metadata import ALIGNMENT_KEY, PADDING_KEY, SPLIT_KEYS
from phiggml.progress import Progress
from phiggml.runtime import thread_count

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["HASH_ALGORITHMS", "GGUFHash", "hash_gguf"]

HASH_ALGORITHMS = ("sha256", "sha1", "blake2b")
# What says how the bytes lie, and nothing about the model.
_LAYOUT_KEYS = frozenset({ALIGNMENT_KEY, PADDING_KEY, *SPLIT_KEYS})
_MOST_WAITING = 4


@dataclass(frozen=True)
class GGUFHash:
    """What hash_gguf found, in hexadecimal digits. str() is a manifest.

    Attributes:
        path: the file.
        algorithm: one of "sha256", "sha1", "blake2b".
        tensors: tensor name -> hash of its data.
        data: hash of the data of all tensors, in the file's order.
        metadata: hash of all keys, types and values.
    """

    path: str
    algorithm: str
    tensors: Mapping[str, str]
    data: str
    metadata: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """(what, hash) of each line of the manifest; `what` is FILE:TENSOR, FILE, FILE#metadata.

        Returns:
            Of each tensor, then of all data, then of the metadata. In names, backslashes and what
            cannot be printed are escaped.
        """
        file = one_line(self.path)
        for name, digest in self.tensors.items():
            yield f"{file}:{one_line(name)}", digest
        yield file, self.data
        yield f"{file}#metadata", self.metadata

    def __str__(self) -> str:
        return "\n".join(f"{self.algorithm:<8}  {digest}  {what}" for what, digest in self.lines())


def hash_gguf(
    path: str | os.PathLike[str],
    *,
    algorithm: str = "sha256",
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> GGUFHash:
    """Hashes the tensors of a GGUF file one by one, all of them together, and the metadata.

    Two files of equal tensors in equal order and of equal metadata have equal hashes, however
    their bytes lie: padding, alignment, byte order, order of the metadata, splitting.

    Args:
        path: the file, or any part of a split model.
        algorithm: "sha256", "sha1" or "blake2b".
        threads: how many to use; more than two do not help, because the hash of all data is one
            long chain. None means all cores available to the process.
        progress: called with a `Progress` after each piece of data; what it raises ends the work.

    Returns:
        GGUFHash. The metadata are hashed as if written one behind the other, sorted by the bytes
        of their keys, as a little-endian file of version 3 has them: u64 length of the key, the
        key, u32 type, value. Left out are `general.alignment`, `phiggml.padding` and `split.*`,
        which describe the layout.

    Raises:
        InputError: an unknown algorithm, or threads out of range.
        FormatError: the file is no valid GGUF, or was changed meanwhile.
        UnsupportedError: data of a big-endian file that nothing turns round.
        OSError: it cannot be read.

    Cost:
        Reads the file once; memory for some pieces of some MB. The GIL is released, Ctrl-C seen
        soon.

    Source:
        Hashes of tensors and of all data are those of llama.cpp's llama-gguf-hash.

    Example:
        >>> found = hash_gguf("phi3-nano.gguf", algorithm="sha1")
        >>> len(found.tensors), len(found.data)
        (27, 40)
    """
    if algorithm not in HASH_ALGORITHMS:
        raise InputError(
            f"hash: algorithm is {algorithm!r}: it must be one of {', '.join(HASH_ALGORITHMS)}."
        )
    n_threads = thread_count(threads, "hash")
    with GGUFFile(path) as file:
        tensors, data = _data_hashes(file, algorithm, n_threads, progress=progress)
        metadata = metadata_hash(file.metadata, algorithm)
        return GGUFHash(file.path, algorithm, tensors, data, metadata)


def _data_hashes(
    file: GGUFFile,
    algorithm: str,
    threads: int,
    *,
    progress: Callable[[Progress], object] | None,
) -> tuple[dict[str, str], str]:
    """Hashes of each tensor, taken on this thread, and of all, taken on another beside it."""
    from concurrent.futures import ThreadPoolExecutor  # cannot be imported while Python ends

    found: dict[str, str] = {}
    whole = hashlib.new(algorithm, usedforsecurity=False)
    done, total = 0, sum(tensor.nbytes for tensor in file.tensors.values())
    waiting: deque[Future[None]] = deque()
    with ExitStack() as stack:
        beside = stack.enter_context(ThreadPoolExecutor(1)) if threads > 1 else None
        for tensor in file.tensors.values():
            own = hashlib.new(algorithm, usedforsecurity=False)
            for _, blocks in blocks_in_pieces(tensor):
                data = blocks.reshape(-1).data
                if beside is None:
                    whole.update(data)
                else:
                    waiting.append(beside.submit(whole.update, data))
                own.update(data)
                if len(waiting) > _MOST_WAITING:
                    waiting.popleft().result()
                done += data.nbytes
                if progress is not None:
                    progress(Progress("hash", done, total))
            found[tensor.name] = own.hexdigest()
        for update in waiting:
            update.result()
    return found, whole.hexdigest()


def metadata_hash(metadata: GGUFMetadata, algorithm: str) -> str:
    """The hash of all keys, types and values but those that describe the layout."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    keys = sorted(key.encode("utf-8") for key in metadata if key not in _LAYOUT_KEYS)
    for key in keys:
        hashed.update(struct.pack("<Q", len(key)) + key)
        hashed.update(metadata.encoded(key.decode("utf-8")))
    return hashed.hexdigest()
