"""A tensor of a GGUF file as a file of numpy's."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from phiggml.atomic_file import AtomicFile, require_writable_name
from phiggml.errors import InputError, UnsupportedError
from phiggml.gguf import GGUFTensor
from phiggml.gguf_piece import blocks_in_pieces, numbers, numbers_dtype
from phiggml.progress import Progress
from phiggml.runtime import thread_count

__all__ = ["extract_tensor", "require_other_file"]


def extract_tensor(
    tensor: GGUFTensor,
    out: str | os.PathLike[str],
    *,
    raw: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> np.dtype[np.generic]:
    """Writes a tensor as numpy's .npy file, which np.load reads.

    Args:
        tensor: of an open GGUFFile.
        out: the file to write; it appears there only when it is complete.
        raw: write the bytes as they are, uint8[..., row_bytes].
        overwrite: whether an existing file may be replaced.
        threads: how many to use; None means all cores available to the process.
        progress: called with a `Progress` after each piece; what it raises ends the work.

    Returns:
        The dtype that was written: float32; of I8 ... I64 and F64 their own; uint8 of raw bytes.

    Raises:
        InputError: `out` is the GGUF file itself or another part of it, or no regular file.
        UnsupportedError: nothing turns the type into numbers.
        FileExistsError: `out` exists and overwrite is False.

    Cost:
        One pass; memory for one piece of some MB. The GIL is released, Ctrl-C seen soon.

    Source:
        The .npy format, version 1.0.

    Example:
        >>> from phiggml.gguf import GGUFFile
        >>> with GGUFFile("phi3-nano.gguf") as f:
        ...     extract_tensor(f.tensors["output_norm.weight"], "norm.npy")
        dtype('float32')
        >>> np.load("norm.npy").shape
        (256,)
    """
    path = Path(out)
    require_writable_name(path, overwrite=overwrite)
    require_other_file(path, tensor, "extract")
    dtype = np.dtype(np.uint8) if raw else numbers_dtype(tensor.type)
    if dtype is None:
        raise UnsupportedError(
            f"extract: tensor {tensor.name!r}: nothing turns {tensor.type} into numbers. "
            "Extract its raw bytes."
        )
    n_threads = thread_count(threads, "extract")
    file = AtomicFile(path.parent)
    try:
        file.write(np.frombuffer(_npy_header(dtype, _shape(tensor, raw=raw)), np.uint8))
        _write_data(file, tensor, None if raw else n_threads, progress=progress)
        file.publish(path, overwrite=overwrite)
    finally:
        file.discard()
    return dtype


def _write_data(
    file: AtomicFile,
    tensor: GGUFTensor,
    threads: int | None,
    *,
    progress: Callable[[Progress], object] | None,
) -> None:
    """Writes the numbers by so many threads; the bytes as they are by None."""
    done = 0
    for _, blocks in blocks_in_pieces(tensor):
        file.write(blocks if threads is None else numbers(blocks, tensor.type, threads))
        done += blocks.nbytes
        if progress is not None:
            progress(Progress("extract", done, tensor.nbytes))


def require_other_file(path: Path, tensor: GGUFTensor, operation: str) -> None:
    """Checks that writing to a file spoils no part of the model that a tensor is read from.

    Raises:
        InputError: it would.
    """
    for source in map(Path, tensor._owner.paths):
        if path.exists() and source.exists() and path.samefile(source):
            raise InputError(
                f"{operation}: {path}: it is the GGUF file itself, or a part of it. "
                "Write to another file."
            )


def _shape(tensor: GGUFTensor, *, raw: bool) -> tuple[int, ...]:
    if raw:
        return (*tensor.shape[:-1], tensor.nbytes // tensor.n_rows)
    return tensor.shape


def _npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
