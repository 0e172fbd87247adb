"""Tiny random checkpoints of the three Phi-3 kinds, each in another released file layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from nano_checkpoint import write_index, write_shards
from nano_corpus import stories
from nano_tokenizer import (
    ChatTokenizer,
    train_pieces,
    write_generation_config,
    write_tokenizer,
)

ORIGINAL_CONTEXT = 4096


@dataclass(frozen=True)
class TinyCheckpoint:
    """What distinguishes one tiny checkpoint from the others."""

    name: str
    seed: int
    pieces: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    dtype: torch.dtype
    context: int = ORIGINAL_CONTEXT
    sliding_window: int = 2047
    long_rope: bool = False
    shards: int = 1
    index: bool = True

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


CHECKPOINTS = (
    TinyCheckpoint(
        "phi3-mini-tiny",
        seed=1,
        pieces=305,
        hidden=64,
        feed_forward=64,
        layers=1,
        heads=4,
        kv_heads=4,
        dtype=torch.float32,
    ),
    TinyCheckpoint(
        "phi3.5-mini-tiny",
        seed=2,
        pieces=350,
        hidden=64,
        feed_forward=128,
        layers=2,
        heads=4,
        kv_heads=4,
        dtype=torch.bfloat16,
        context=131072,
        sliding_window=262144,
        long_rope=True,
        shards=2,
    ),
    TinyCheckpoint(
        "phi3-medium-tiny",
        seed=3,
        pieces=360,
        hidden=64,
        feed_forward=128,
        layers=2,
        heads=8,
        kv_heads=2,
        dtype=torch.float16,
        shards=2,
        index=False,
    ),
)


def random_tensors(kind: TinyCheckpoint, rows: int) -> dict[str, torch.Tensor]:
    """Weights so large that each layer changes the logits visibly, in the order of the release."""
    rng = np.random.default_rng(kind.seed)

    def matrix(n_out: int, n_in: int, gain: float = 1.0) -> torch.Tensor:
        values = rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)
        return torch.from_numpy(values.astype(np.float32)).to(kind.dtype)

    def norm() -> torch.Tensor:
        return torch.from_numpy(rng.uniform(0.5, 1.5, kind.hidden).astype(np.float32)).to(
            kind.dtype
        )

    n, kv = kind.hidden, kind.kv_heads * kind.head_size
    tensors = {"model.embed_tokens.weight": matrix(rows, n, gain=np.sqrt(n))}
    for i in range(kind.layers):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "input_layernorm.weight": norm(),
            layer + "mlp.down_proj.weight": matrix(n, kind.feed_forward, gain=2.0),
            layer + "mlp.gate_up_proj.weight": matrix(2 * kind.feed_forward, n),
            layer + "post_attention_layernorm.weight": norm(),
            layer + "self_attn.o_proj.weight": matrix(n, n, gain=2.0),
            layer + "self_attn.qkv_proj.weight": matrix(n + 2 * kv, n, gain=1.5),
        }
    tensors["model.norm.weight"] = norm()
    tensors["lm_head.weight"] = matrix(rows, n, gain=2.0)
    return tensors


def rope_factors(kind: TinyCheckpoint) -> dict[str, list[float]]:
    """Rising factors of the size that Phi-3.5-mini has: short near 1, long up to about 60."""
    rng = np.random.default_rng(kind.seed + 100)
    half = kind.head_size // 2
    short = 1 + np.sort(rng.uniform(0, 2, half))
    long = 1 + np.sort(rng.uniform(0, 60, half))
    return {
        "short_factor": [round(float(f), 4) for f in short],
        "long_factor": [round(float(f), 4) for f in long],
    }


def base_config(kind: TinyCheckpoint, rows: int, eos_token_id: int) -> dict[str, object]:
    """The fields that both layouts of config.json share."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": eos_token_id,
        "hidden_act": "silu",
        "hidden_size": kind.hidden,
        "initializer_range": 0.02,
        "intermediate_size": kind.feed_forward,
        "max_position_embeddings": kind.context,
        "model_type": "phi3",
        "num_attention_heads": kind.heads,
        "num_hidden_layers": kind.layers,
        "num_key_value_heads": kind.kv_heads,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "pad_token_id": eos_token_id,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "sliding_window": kind.sliding_window,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": rows,
    }


def old_config(kind: TinyCheckpoint, base: Mapping[str, object]) -> dict[str, object]:
    """The layout of the releases of 2024: rope_theta and rope_scaling at the top."""
    scaling = {"type": "longrope", **rope_factors(kind)} if kind.long_rope else None
    dtype = str(kind.dtype).removeprefix("torch.")
    return {**base, "rope_scaling": scaling, "rope_theta": 10000.0, "torch_dtype": dtype}


def new_config(kind: TinyCheckpoint, base: Mapping[str, object]) -> dict[str, object]:
    """The layout that transformers 5 writes: everything about RoPE in rope_parameters."""
    parameters: dict[str, object] = {"partial_rotary_factor": 1.0, "rope_theta": 10000.0}
    if kind.long_rope:
        parameters |= {
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
            "rope_type": "longrope",
            **rope_factors(kind),
        }
    else:
        parameters["rope_type"] = "default"
    dtype = str(kind.dtype).removeprefix("torch.")
    return {**base, "dtype": dtype, "rope_parameters": parameters}


def write_checkpoint(kind: TinyCheckpoint, folder: Path) -> None:
    """Write the complete checkpoint folder of ``kind``, replacing what was there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    texts = [
        text.lower() for text in stories(3000, kind.seed)
    ]  # few characters: a small vocabulary
    model = train_pieces(texts, size=kind.pieces)
    write_tokenizer(folder, model, max_length=kind.context)
    write_generation_config(folder, model)
    tokenizer = ChatTokenizer(model)
    rows = tokenizer.padded_size
    base = base_config(kind, rows, tokenizer.markers["<|endoftext|>"])
    configs = {"config.json": old_config(kind, base)}
    if kind.long_rope:
        configs = {
            "config.json": new_config(kind, base),
            "config.rope_scaling.json": old_config(kind, base),
        }
    for file, config in configs.items():
        text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
        (folder / file).write_text(text, encoding="utf-8")
    tensors = random_tensors(kind, rows)
    if kind.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        return
    weight_map = write_shards(folder, tensors, shards=kind.shards)
    if kind.index:
        write_index(folder, tensors, weight_map)
