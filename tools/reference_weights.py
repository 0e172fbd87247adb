"""Random weights, RoPE factors and file layouts of the tiny checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from nano_checkpoint import write_index, write_shards

# Of what attention and feed-forward add to the residual stream. Larger shows a missing rule more
# clearly in the logits, smaller keeps the best token through the rounding of BF16 and Q8_0.
LAYER_GAIN = 0.5


class RandomWeights:
    """A seeded stream of tensors of random values, about as large as released ones after norms."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.dtype)

    def matrix(self, n_out: int, n_in: int, gain: float = 1.0) -> torch.Tensor:
        return self._tensor(self.rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in))

    def norm(self, size: int) -> torch.Tensor:
        return self._tensor(self.rng.uniform(0.5, 1.5, size))

    def bias(self, size: int, gain: float = 0.3) -> torch.Tensor:
        return self._tensor(self.rng.standard_normal(size) * gain)


def rope_factors(seed: int, rotary: int) -> dict[str, list[float]]:
    """Rising factors of the size that Phi-3.5-mini has: short near 1, long up to about 60."""
    rng = np.random.default_rng(seed + 100)
    short = 1 + np.sort(rng.uniform(0, 2, rotary // 2))
    long = 1 + np.sort(rng.uniform(0, 60, rotary // 2))
    return {
        "short_factor": [round(float(f), 4) for f in short],
        "long_factor": [round(float(f), 4) for f in long],
    }


def new_folder(folder: Path) -> None:
    """An empty folder in the place of what was there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def write_config(folder: Path, config: Mapping[str, object], *, name: str = "config.json") -> None:
    text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    (folder / name).write_text(text, encoding="utf-8")


def write_tensors(
    folder: Path, tensors: dict[str, torch.Tensor], *, shards: int = 1, index: bool = True
) -> None:
    """Write model.safetensors, or shards with or without an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        return
    weight_map = write_shards(folder, tensors, shards=shards)
    if index:
        write_index(folder, tensors, weight_map)
