"""What a model is written from: metadata, and tensors whose rows are read when they are needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile

__all__ = ["SourceModel", "SourceTensor", "gguf_parts", "gguf_source"]


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
    """

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[int, int], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class SourceModel:
    """A model to be written.

    Attributes:
        architecture: value of general.architecture.
        metadata: GGUF keys -> values, without general.file_type and general.quantization_version.
        tensors: in any order.
        paths: the files that it is read from, none of which may be written to.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Sequence[SourceTensor]
    paths: tuple[Path, ...] = ()


def gguf_source(path: str | os.PathLike[str], files: ExitStack) -> SourceModel:
    """Opens a GGUF model for reading, all its parts when it is split.

    Args:
        path: the file, or the first part of a split model.
        files: what keeps the files open, and closes them.

    Returns:
        The model; each read copies its rows from the file, so that one which somebody truncates
        meanwhile raises FormatError instead of ending the process.

    Raises:
        FormatError: a part is no valid GGUF, or the parts do not belong together.
        OSError: a part is not there.

    Source:
        split.* keys as llama_model_loader reads them, names as llama_split_path makes them.
    """
    first = files.enter_context(GGUFFile(path))
    paths = gguf_parts(first)
    architecture = first.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise FormatError(
            f"{first.path}: general.architecture is missing: it is no model.", path=first.path
        )
    parts = [first, *(files.enter_context(GGUFFile(part)) for part in paths[1:])]
    tensors: dict[str, SourceTensor] = {}
    for part in parts:
        for tensor in part.tensors.values():
            if tensor.name in tensors:
                raise FormatError(
                    f"{part.path}: tensor {tensor.name!r} is in another part too.", path=part.path
                )
            tensors[tensor.name] = SourceTensor(
                tensor.name, tensor.shape, tensor.type, tensor.read_rows
            )
    promised = first.metadata.get("split.tensors.count", len(tensors)) if len(parts) > 1 else None
    if promised is not None and promised != len(tensors):
        raise FormatError(
            f"{first.path}: its {len(parts)} parts hold {len(tensors)} tensors, not {promised}.",
            path=first.path,
        )
    metadata = {key: first.metadata.exact(key) for key in first.metadata}
    return SourceModel(architecture, metadata, tuple(tensors.values()), paths)


def gguf_parts(first: GGUFFile) -> tuple[Path, ...]:
    """Paths of all parts of a model, the first of which is given; one when it is not split.

    Raises:
        InputError: another part than the first is given.
        FormatError: the split.* keys or the file's name are not those of a split model.
    """
    path = Path(first.path)
    count = first.metadata.get("split.count", 1)
    number = first.metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int):
        raise FormatError(f"{path}: split.count and split.no must be integers.", path=first.path)
    if count <= 1:
        return (path,)
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if number != 0:
        raise InputError(
            f"{path}: it is part {number + 1} of {count} of a split model. Pass the first part."
        )
    if name is None or (int(name[2]), int(name[3])) != (1, count):
        raise FormatError(
            f"{path}: it is the first of {count} parts, so its name must end in "
            f"-00001-of-{count:05}.gguf. Rename it.",
            path=first.path,
        )
    return tuple(
        path.with_name(f"{name[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)
    )
