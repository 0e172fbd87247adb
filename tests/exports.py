"""What the tests of export share: changed copies of GGUF files, and safetensors read by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import phiggml as pg

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parent.parent / "examples" / "phi3-nano"
KINDS = ("phi3-mini-tiny", "phi3.5-mini-tiny", "phi3-medium-tiny")

_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def changed(
    source: Path,
    out: Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    without: Collection[str] = (),
    tensors: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Path:
    """A copy with other metadata and tensors; `without` names keys and tensors to leave out."""
    with pg.GGUFFile(source) as file, pg.GGUFWriter(out, overwrite=True) as writer:
        for key in file.metadata:
            if key not in without:
                writer.metadata[key] = file.metadata.exact(key)
        for key, value in (metadata or {}).items():
            writer.metadata[key] = value
        for tensor in file.tensors.values():
            if tensor.name not in {*without, *(tensors or {})}:
                writer.add_tensor(tensor.name, tensor.data, tensor.type)
        for name, array in (tensors or {}).items():
            writer.add_tensor(name, array)
    return out


def json_of(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def entries(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, and that the data are covered in order."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert (8 + length) % 8 == 0
    end = 0
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end and begin % _DTYPES[entry["dtype"]].itemsize == 0, name
        assert stop - begin == int(np.prod(entry["shape"])) * _DTYPES[entry["dtype"]].itemsize
        end = stop
    assert end == len(data) - 8 - length
    return header, data[8 + length :]


def read_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of a checkpoint in the dtype that it is stored in."""
    found: dict[str, npt.NDArray[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = entries(path)
        for name, entry in header.items():
            assert name not in found
            begin, end = entry["data_offsets"]
            array = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]])
            found[name] = array.reshape(entry["shape"])
    return found
