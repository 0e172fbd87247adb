"""A checkpoint folder in the Hugging Face layout: which files, and which tensors lie in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.conversion.faults import Faults
from phiggml.conversion.jsonfile import LARGE_LIMIT, read_object
from phiggml.conversion.safetensors import SafetensorsFile, StoredTensor
from phiggml.errors import FormatError, InputError, UnsupportedError

__all__ = ["Checkpoint"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_MISSING_SHOWN = 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint:
    """A folder with config.json and safetensors weights; nothing in it is executed or unpickled.

    Args:
        folder: the checkpoint.
        faults: receives what is wrong with the index and the set of shards.

    Raises:
        FileNotFoundError: there is no such folder.
        FormatError: config.json is absent, or a file breaks its format.
        UnsupportedError: the weights are pickled.

    Cost:
        Reads headers only.
    """

    def __init__(self, folder: Path, faults: Faults) -> None:
        if not folder.exists():
            raise FileNotFoundError(f"convert: {folder}: there is no such folder.")
        if not folder.is_dir():
            raise FormatError(
                f"convert: {folder}: is a file. Give the folder that holds config.json and "
                "model.safetensors.",
                path=str(folder),
            )
        self.folder = folder
        self.config: dict[str, Any] = self._read_config()
        self.files: dict[str, SafetensorsFile] = {}
        self._faults = faults
        self._broken: list[FormatError] = []

    def open_weights(self) -> Mapping[str, StoredTensor]:
        """Reads the headers of all weight files; returns every tensor by name."""
        if (self.folder / _SINGLE).exists():
            self._open(_SINGLE)
        elif (self.folder / _INDEX).exists():
            self._open_indexed()
        else:
            for name in self._shards():
                self._open(name)
        self._raise_if_broken()
        tensors: dict[str, StoredTensor] = {}
        for file in self.files.values():
            for name, tensor in file.tensors.items():
                if name in tensors:
                    self._faults.add(
                        file.path, f"tensor {name!r} lies in {tensors[name].path.name} as well."
                    )
                tensors[name] = tensor
        return MappingProxyType(tensors)

    def data(
        self, tensor: StoredTensor, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns bytes [start, stop) of a tensor, or all, read from its file: uint8[...]."""
        file = self.files.get(tensor.path.name)
        if file is None:
            raise InputError(f"read checkpoint: {tensor.path}: is not open in a copy. Plan again.")
        return file.data(tensor, start, stop)

    def row_sources(self) -> dict[str, _core.pipeline.RowSource]:
        """By file name, what threads read rows from."""
        return {name: file.row_source() for name, file in self.files.items()}

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, as of a report that is pickled, does not hold the files open."""
        return {**vars(self), "files": {}}

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not path.exists():
            raise FormatError(
                f"convert: {self.folder}: holds no config.json. Give the folder of a "
                "Hugging Face checkpoint.",
                path=str(self.folder),
            )
        return read_object(path)

    def _open(self, name: str) -> bool:
        try:
            self.files[name] = SafetensorsFile(self.folder / name)
        except FormatError as error:
            self._broken.append(error)
            return False
        return True

    def _raise_if_broken(self) -> None:
        """Without the tensors of a broken file, all of them would only seem to be missing."""
        if not self._broken:
            return
        if len(self._broken) == 1 and not self._faults.sentences:
            raise self._broken[0]
        for error in self._broken:
            path = Path(error.path or self.folder)
            self._faults.add(path, str(error).removeprefix(f"read checkpoint: {path}: "))
        raise self._faults.error(self.folder)

    def _shards(self) -> list[str]:
        names = sorted(path.name for path in self.folder.glob("model*.safetensors"))
        if not names:
            self._refuse_no_weights()
        totals = sorted({m[2] for m in map(_SHARD.fullmatch, names) if m})
        for total in totals[1:]:
            self._faults.add(
                self.folder, f"holds shards of {totals[0]} and of {total}. Keep those of one model."
            )
        for total in totals[:1]:
            expected = {f"model-{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1)}
            for name in sorted(expected.difference(names))[:_MISSING_SHOWN]:
                self._faults.add(self.folder / name, "this shard is absent.")
        return names

    def _refuse_no_weights(self) -> None:
        pickles = sorted(p.name for pattern in _PICKLES for p in self.folder.glob(pattern))
        if pickles:
            raise UnsupportedError(
                f"convert: {self.folder / pickles[0]}: pickled weights are never loaded, because "
                "a pickle can run code. Save them as safetensors first, where you trust them: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, "
                "safe_serialization=True)."
            )
        raise FormatError(
            f"convert: {self.folder}: holds no weights. It needs model.safetensors, or shards "
            "named model-00001-of-0000N.safetensors.",
            path=str(self.folder),
        )

    def _open_indexed(self) -> None:
        path = self.folder / _INDEX
        index = read_object(path, limit=LARGE_LIMIT, unique=True)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(
                f"read checkpoint: {path}: weight_map must map tensor names to file names.",
                path=str(path),
            )
        by_file: dict[str, set[str]] = {}
        for tensor, name in weight_map.items():
            # A name with a folder in it could point anywhere on the machine.
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                self._faults.add(
                    path, f"tensor {tensor!r}: {name!r} names no safetensors file of this folder."
                )
            else:
                by_file.setdefault(name, set()).add(tensor)
        here = {entry.name for entry in self.folder.iterdir()}
        for name, tensors in sorted(by_file.items()):
            if name in here and (self.folder / name).exists():
                self._open_shard(path, name, tensors)
            else:
                self._faults.add(
                    path, f"names the shard {name}, which is absent ({_some(tensors)})."
                )

    def _open_shard(self, index: Path, name: str, tensors: set[str]) -> None:
        if not self._open(name):
            return
        present = set(self.files[name].tensors)
        for tensor in sorted(tensors - present):
            self._faults.add(index, f"tensor {tensor!r} is not in {name}.")
        for tensor in sorted(present - tensors):
            self._faults.add(index, f"lacks the tensor {tensor!r}, which {name} holds.")


def _some(tensors: set[str]) -> str:
    """How many they are, and the first of them."""
    first = ", ".join(map(repr, sorted(tensors)[:3]))
    return f"{len(tensors)} tensor{'s' if len(tensors) > 1 else ''}: {first}"
