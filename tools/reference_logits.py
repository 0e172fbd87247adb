"""Logits of checkpoint folders: transformers in float32 on the CPU, reloaded, without a cache."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nano_checkpoint import write_index

LENGTHS = (16, 200)
LINE = 128  # original_max_position_embeddings of the tiny checkpoints that cross it
WINDOW = 64  # sliding_window of those that are longer than it
LINE_LENGTHS = (16, LINE - 1, LINE, LINE + 1, 200, 300)
WINDOW_LENGTHS = (16, WINDOW - 4, WINDOW, WINDOW + 1, 200)
PREFIXES = (1, 2, 60, *range(LINE - 2, LINE + 4), 200, 299, 300)
POSITIONS = 12  # of the longer texts
SMALL = 16  # texts up to here keep the logits of every position


def load(folder: Path, config: str = "config.json") -> torch.nn.Module:
    """The model in float32, from a copy of ``folder`` with what transformers 5 asks for.

    Shards get an index, and rope type "su" is called "longrope", as transformers' Phi3Config
    itself renames it, though only after a check that it then fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy)
        fields = json.loads((folder / config).read_text(encoding="utf-8"))
        scaling = fields.get("rope_scaling") or {}
        if scaling.get("type") == "su":
            scaling["type"] = "longrope"
        (copy / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        files = sorted(copy.glob("model-*.safetensors"))
        if files and not (copy / "model.safetensors.index.json").exists():
            tensors: dict[str, torch.Tensor] = {}
            weight_map: dict[str, str] = {}
            for file in files:
                with safe_open(file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118  (not a mapping)
                        tensors[name] = shard.get_tensor(name)
                        weight_map[name] = file.name
            write_index(copy, tensors, weight_map)
        model, report = AutoModelForCausalLM.from_pretrained(
            copy, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    if any(report.values()):
        raise ValueError(f"{folder.name}: transformers did not use every tensor: {report}")
    loaded: torch.nn.Module = model
    return loaded  # in evaluation mode


def follow_released_phimoe(model: torch.nn.Module, length: int) -> None:
    """Let Phimoe take the long factors when ``length`` is beyond the line.

    transformers applies short_mscale or long_mscale by the length, but computes the frequencies
    without it, which always gives the short factors. The released code takes the long ones.
    """
    rotary: Any = model.model.rotary_emb
    if model.config.model_type == "phimoe" and rotary.rope_type == "longrope":
        rotary.rope_init_fn = partial(ROPE_INIT_FUNCTIONS["longrope"], seq_len=length)


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    logits: np.ndarray = model(input_ids=ids, use_cache=False).logits[0].numpy()
    return logits


def truth_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Logits float32[n, n_vocab] by the released rules; below the line transformers' as it is."""
    plain = logits_of(model, tokens)
    follow_released_phimoe(model, len(tokens))
    logits = logits_of(model, tokens)
    beyond = len(tokens) > LINE and model.config.model_type == "phimoe"
    if not beyond and not np.array_equal(plain, logits):
        raise ValueError("the patched rotary embedding differs below the line")
    return logits


def lengths_of(model: torch.nn.Module) -> tuple[int, ...]:
    """The lengths to evaluate: those on both sides of the model's limit."""
    config: Any = model.config
    if config.rope_parameters.get("original_max_position_embeddings") == LINE:
        return LINE_LENGTHS
    if getattr(config, "sliding_window", None) == WINDOW:
        return WINDOW_LENGTHS
    return LENGTHS


def limit_of(model: torch.nn.Module) -> int | None:
    """The released window, or line of long rope, of a checkpoint that has neither made short."""
    config: Any = model.config
    if config.rope_parameters["rope_type"] == "longrope":
        limit = config.rope_parameters["original_max_position_embeddings"]
    else:
        limit = getattr(config, "sliding_window", None)
    return limit if limit is not None and limit > WINDOW_LENGTHS[-1] else None


def limit_arrays(folder: Path, model: torch.nn.Module, limit: int, seed: int) -> dict[str, Any]:
    """One text, and the logits after its first limit - 1, ... limit + 60 tokens."""
    lengths = (limit - 1, limit, limit + 1, limit + 60)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, n_tokens(folder), lengths[-1]).astype(np.int32)
    logits = np.stack([truth_of(model, tokens[:n])[-1] for n in lengths])
    check(folder.name, logits)
    return {"tokens": tokens, "lengths": np.array(lengths, np.int32), "logits": logits}


def n_tokens(folder: Path) -> int:
    """Tokens that have a text: pieces and added tokens, without padding."""
    if (folder / "tokenizer.model").exists():
        added: dict[str, int] = json.loads(
            (folder / "added_tokens.json").read_text(encoding="utf-8")
        )
        return max(added.values()) + 1
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"])]
    return max(ids) + 1


def check(name: str, logits: np.ndarray) -> None:
    if not np.isfinite(logits).all() or logits.std() < 0.5:
        raise ValueError(f"{name}: the logits are degenerate")


def logits_arrays(folder: Path, model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """tokens_n, positions_n and logits_n for each length, and prefixes around the line.

    Texts of a model with a limit are prefixes of one text. Every config layout in ``folder`` must
    give the same logits.
    """
    rng = np.random.default_rng(seed)
    lengths, high = lengths_of(model), n_tokens(folder)
    longest = rng.integers(3, high, lengths[-1]) if lengths != LENGTHS else None
    others = [load(folder, other.name) for other in folder.glob("config.*.json")]
    arrays: dict[str, np.ndarray] = {}
    for n in lengths:
        drawn = rng.integers(3, high, n) if longest is None else longest[:n]
        tokens = drawn.astype(np.int32)
        logits = truth_of(model, tokens)
        check(folder.name, logits)
        for other in others:
            if not np.array_equal(logits_of(other, tokens), logits):
                raise ValueError(f"{folder.name}: another config layout gives other logits")
        few = np.linspace(0, n - 1, POSITIONS).round().astype(np.int32)
        positions = np.arange(n, dtype=np.int32) if n <= SMALL else few
        arrays |= {
            f"tokens_{n}": tokens,
            f"positions_{n}": positions,
            f"logits_{n}": logits[positions],
        }
    if lengths == LINE_LENGTHS and longest is not None:
        rows = [truth_of(model, longest[:n])[-1] for n in PREFIXES]
        arrays |= {
            "prefixes": np.array(PREFIXES, dtype=np.int32),
            "prefix_logits": np.stack(rows),
        }
    return arrays
