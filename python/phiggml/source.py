"""What a model is written from: metadata, and tensors whose rows are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.gguf import GGUFFile
from phiggml.model_check import check_model

__all__ = ["SourceModel", "SourceTensor", "gguf_source"]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor to be written.

    Attributes:
        name: as it is called in GGUF.
        shape: in numpy order.
        type: tensor type of the rows that `read` returns, such as "BF16".
        read: (start, stop) -> rows start to stop of the tensor, seen as
            (prod(shape[:-1]), shape[-1]), in storage: uint8[stop - start, row_bytes],
            C-contiguous; may be a view.
        runs: where these rows lie in files, one run after the other, perhaps in another float
            type; None where they cannot be used as they lie there.
        part: of a split model, the number of the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[int, int], npt.NDArray[np.uint8]]
    runs: tuple[_core.pipeline.RowRun, ...] | None = None
    part: int = 0


@dataclass(frozen=True)
class SourceModel:
    """A model to be written.

    Attributes:
        architecture: value of general.architecture.
        metadata: GGUF keys -> values, without general.file_type and general.quantization_version.
        tensors: in the order of the files.
        paths: the files that it is read from, none of which may be written to.
        split: whether they are the parts of a split GGUF model.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Sequence[SourceTensor]
    paths: tuple[Path, ...] = ()
    split: bool = False


def gguf_source(path: str | os.PathLike[str], files: ExitStack) -> SourceModel:
    """Opens a GGUF model for reading, all its parts when it is split.

    Args:
        path: the file, or any part of a split model.
        files: what keeps the files open, and closes them.

    Returns:
        The model; each read copies its rows from the file, so that one which somebody truncates
        meanwhile raises FormatError instead of ending the process.

    Raises:
        FormatError: a part is no valid GGUF, or the parts do not belong together, or it is no
            model.
        OSError: a part is not there.
    """
    file = files.enter_context(GGUFFile(path))
    check_model(file, purpose="quantize")
    parts = {path: number for number, path in enumerate(file.paths)}
    found = sorted(file.tensors.values(), key=lambda t: (parts[t.path], t.offset))
    tensors = tuple(
        SourceTensor(t.name, t.shape, t.type, t.read_rows, t.row_runs(), parts[t.path])
        for t in found
    )
    metadata = {key: file.metadata.exact(key) for key in file.metadata}
    architecture = file.metadata["general.architecture"]
    paths = tuple(map(Path, file.paths))
    return SourceModel(architecture, metadata, tensors, paths, split=len(paths) > 1)
