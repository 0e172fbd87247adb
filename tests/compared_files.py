"""Small files that types are compared on, and what the comparison of them must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from command_line import Out, phiggml

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def gguf_file(path: Path, tensors: dict[str, Any], **metadata: Any) -> Path:
    with pg.GGUFWriter(path) as writer:
        for key, value in metadata.items():
            writer.metadata[key.replace("__", ".")] = value
        for name, array in tensors.items():
            writer.add_tensor(name, array)
    return path


def safetensors_file(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        ends = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def model_file(folder: Path) -> Path:
    """Two matrices of very different size and scale, and what cannot be compared with them."""
    tensors = {
        "large": normal(6, 512),
        "small": normal(2, 256, seed=1, scale=1e-3),
        "vector": np.ones(256, np.float32),
        "odd": normal(3, 100, seed=2),
        "counts": np.arange(8, dtype=np.int32),
    }
    return gguf_file(folder / "model.gguf", tensors)


def figures(before: Array, after: Array) -> dict[str, float]:
    """Those of one tensor, by numpy in float64."""
    before = before.astype(np.float64)
    lengths = np.linalg.norm(before) * np.linalg.norm(after)
    return {
        "nrmse": float(np.linalg.norm(before - after) / np.linalg.norm(before)),
        "max_abs": float(np.abs(before - after).max()),
        "cosine": float(np.vdot(before, after) / lengths),
    }


def document(out: Out, *arguments: str | Path) -> dict[str, Any]:
    assert phiggml("compare", *arguments, "--json", "--threads", "2") == 0
    captured = out.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def require_figures(row: dict[str, Any], expected: dict[str, float]) -> None:
    """Within 1e-9 relative: sums of float64 in another order."""
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-9), (row["type"], key)


def types(found: dict[str, Any]) -> set[str]:
    return {row["type"] for row in found["types"]}
