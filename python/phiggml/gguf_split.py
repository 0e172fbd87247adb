"""Splitting a GGUF model into several files, and merging them again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.gguf_writer import GGUFWriter
from phiggml.gguf_writer_target import split_prefix
from phiggml.progress import Progress, ProgressCallback

__all__ = ["merge_gguf", "split_gguf"]

_PIECE_BYTES = 8 << 20


def split_gguf(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> tuple[Path, ...]:
    """Writes a model as several files, each tensor whole in one of them.

    The first file has all metadata; llama.cpp and GGUFFile open all of them when it is given.

    Args:
        path: the model; of one that is split already, any part.
        out: PREFIX.gguf: the files are called PREFIX-00001-of-00003.gguf, and so on.
        max_bytes: what the tensors of a file may take; a larger tensor has a file of its own.
        max_tensors: how many tensors a file may have.
        overwrite: whether existing files may be replaced.
        progress: called with a Progress now and then; what it raises cancels the work.

    Returns:
        The files, the first one first.

    Raises:
        InputError: neither limit is given, or one is no positive integer; the files would take
            the place of those that are read.
        FormatError: the model is no valid GGUF.
        FileExistsError: there is such a file, and overwrite is False.
        OSError: the file system refuses. Nothing is left behind.

    Cost:
        One copy of the tensors' bytes through pieces of 8 MiB; a longer row is mapped.

    Source:
        llama-gguf-split: names, keys, and where a file ends.

    Example:
        >>> import tempfile
        >>> from phiggml import merge_gguf, split_gguf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = split_gguf("phi3-nano.gguf", f"{folder}/nano.gguf", max_bytes=3_000_000)
        ...     [part.name for part in parts]
        ['nano-00001-of-00003.gguf', 'nano-00002-of-00003.gguf', 'nano-00003-of-00003.gguf']
    """
    if max_bytes is None and max_tensors is None:
        raise InputError("split_gguf: no limit is given. Pass max_bytes or max_tensors.")
    prefix = str(split_prefix(out))
    with GGUFFile(path) as model:
        for source in map(os.path.realpath, model.paths):
            if re.fullmatch(re.escape(prefix) + r"-\d{5}-of-\d{5}\.gguf", source, re.DOTALL):
                raise InputError(
                    f"split_gguf: {source}: it is read, and could be replaced. "
                    "Choose another name for the output."
                )
        with GGUFWriter(
            out, overwrite=overwrite, split_max_bytes=max_bytes, split_max_tensors=max_tensors
        ) as writer:
            _copy(model, writer, "split", progress)
    return tuple(map(Path, writer.paths))


def merge_gguf(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Writes a split model as one file.

    Args:
        path: any part of it.
        out: the file to write.
        overwrite: whether an existing file may be replaced.
        progress: called with a Progress now and then; what it raises cancels the work.

    Returns:
        The file.

    Raises:
        InputError: the model is not split; the output is one of its parts.
        FormatError: a part is no valid GGUF, or the parts do not belong together.
        FileExistsError: there is such a file, and overwrite is False.
        OSError: a part is not there, or the file system refuses. Nothing is left behind.

    Cost:
        One copy of the tensors' bytes through pieces of 8 MiB; a longer row is mapped.

    Source:
        llama-gguf-split: which files belong together. The keys split.* are left out.

    Example:
        >>> import tempfile
        >>> from phiggml import GGUFFile, merge_gguf, split_gguf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = split_gguf("phi3-nano.gguf", f"{folder}/nano.gguf", max_tensors=10)
        ...     with GGUFFile(merge_gguf(parts[1], f"{folder}/whole.gguf")) as file:
        ...         file.tensors["output.weight"].shape
        (2048, 256)
    """
    with GGUFFile(path) as model:
        if len(model.paths) == 1 and model.metadata.get("split.count") != 1:
            raise InputError(
                f"merge_gguf: {model.path}: it is no part of a split model: there is nothing to "
                "merge."
            )
        if os.path.realpath(out) in map(os.path.realpath, model.paths):
            raise InputError(
                f"merge_gguf: {os.fspath(out)}: it is one of the parts. "
                "Choose another name for the output."
            )
        with GGUFWriter(out, overwrite=overwrite) as writer:
            _copy(model, writer, "merge", progress)
    return Path(out)


def _copy(
    model: GGUFFile, writer: GGUFWriter, stage: str, progress: ProgressCallback | None
) -> None:
    """Copies everything but split.*, which says how the source was split."""
    split_keys = [key for key in model.metadata if key.startswith("split.")]
    writer.copy_metadata(model.metadata, skip=split_keys)
    tensors = model.tensors.values()
    for tensor in tensors:
        # To ggml a tensor of no axes has one, of length 1, and it writes that.
        writer.add_tensor_stream(tensor.name, tensor.shape or (1,), tensor.type)
    done, total = 0, sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        for rows in _rows_in_pieces(tensor):
            writer.write_rows(rows)
            done += rows.nbytes
            if progress is not None:
                progress(Progress(stage, done, total))


def _rows_in_pieces(tensor: GGUFTensor) -> Iterator[npt.NDArray[np.uint8]]:
    row_bytes = tensor.nbytes // tensor.n_rows
    if row_bytes > _PIECE_BYTES:
        yield from tensor.data.reshape(tensor.n_rows, row_bytes)
        return
    step = _PIECE_BYTES // row_bytes
    for start in range(0, tensor.n_rows, step):
        yield tensor.read_rows(start, min(start + step, tensor.n_rows))
