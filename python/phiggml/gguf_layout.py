"""Where the parts of a GGUF file lie: in order, without gaps, zeros between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.gguf_fault import GGUFFault

__all__ = ["layout_faults"]

_AT_ONCE = 1 << 20


def layout_faults(file: GGUFFile) -> Iterator[GGUFFault]:
    """What ggml refuses, or nobody writes, in a file whose structure is sound.

    Args:
        file: a single file, not the whole of a split model.

    Yields:
        A fault for each tensor that is not at the padded end of the one before, for padding that
        is not zero, and for data that end too early or too late.

    Source:
        gguf_init_from_reader in ggml's gguf.cpp, which adds up the padded sizes.
    """
    with Path(file.path).open("rb") as raw:
        yield from _padding_faults(raw, file, file.header_end, file.data_offset)
        expected = end = file.data_offset
        for tensor in file.tensors.values():
            if tensor.offset != expected:
                yield _displaced(file, tensor, expected)
            expected = _padded(tensor.offset + tensor.nbytes, file.alignment)
            end = max(end, expected)
            yield from _padding_faults(raw, file, tensor.offset + tensor.nbytes, expected)
    if file.nbytes > end:
        yield GGUFFault(
            f"{file.nbytes - end:,} bytes follow the last tensor's data, and belong to nothing. "
            "Write the file anew.",
            end,
            path=file.path,
        )
    elif file.nbytes < end and len(file.tensors) > 0:
        yield GGUFFault(
            f"the file ends {end - file.nbytes} bytes before its last tensor's padding does, and "
            "ggml refuses to load the data. Write the file anew.",
            file.nbytes,
            path=file.path,
        )


def _padded(end: int, alignment: int) -> int:
    return end + -end % alignment


def _displaced(file: GGUFFile, tensor: GGUFTensor, expected: int) -> GGUFFault:
    return GGUFFault(
        f"tensor {tensor.name!r}: its data begin at byte {tensor.offset}, and ggml wants them at "
        f"byte {expected}, right behind those of the tensor before it. Write the file anew.",
        tensor.offset,
        tensor.name,
        file.path,
    )


def _padding_faults(raw: BinaryIO, file: GGUFFile, start: int, stop: int) -> Iterator[GGUFFault]:
    raw.seek(start)
    stop = min(stop, file.nbytes)
    while start < stop:
        piece = np.frombuffer(raw.read(min(stop - start, _AT_ONCE)), np.uint8)
        if piece.any():
            first = int(np.flatnonzero(piece)[0])
            yield GGUFFault(
                f"the padding up to byte {stop} is not zero: it holds {piece[first]}. "
                "Something may be hidden there; write the file anew.",
                start + first,
                path=file.path,
            )
            return
        if piece.size == 0:  # it has become shorter
            return
        start += piece.size
