"""Tiny random checkpoints of the Phi-3 kinds, each in another released file layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nano_corpus import stories
from nano_tokenizer import (
    ChatTokenizer,
    train_pieces,
    write_generation_config,
    write_tokenizer,
)
from nano_tokenizer_json import write_tokenizer_json
from reference_bpe import PHI4, PHI4_MINI, BPEFiles, BPEKind
from reference_weights import (
    LAYER_GAIN,
    RandomWeights,
    new_folder,
    rope_factors,
    write_config,
    write_tensors,
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
    sliding_window: int | None = 2047
    original_context: int = ORIGINAL_CONTEXT
    rope_type: str | None = None
    rope_theta: float = 10000.0
    rotary_share: float = 1.0
    tied: bool = False
    shards: int = 1
    index: bool = True
    both_layouts: bool = False
    tokenizer_json: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def rope_factors(self) -> dict[str, list[float]]:
        return rope_factors(self.seed, int(self.head_size * self.rotary_share))


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
        rope_type="longrope",
        shards=2,
        both_layouts=True,
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
    TinyCheckpoint(
        "phi3-window-tiny",
        seed=4,
        pieces=350,
        hidden=64,
        feed_forward=128,
        layers=2,
        heads=4,
        kv_heads=4,
        dtype=torch.bfloat16,
        sliding_window=64,
    ),
    TinyCheckpoint(
        "phi3-128k-tiny",
        seed=5,
        pieces=350,
        hidden=64,
        feed_forward=128,
        layers=2,
        heads=4,
        kv_heads=4,
        dtype=torch.bfloat16,
        sliding_window=262144,
        original_context=128,
        rope_type="su",
        shards=2,
        tokenizer_json=True,
    ),
)

BPE_CHECKPOINTS = (
    (
        PHI4,
        TinyCheckpoint(
            "phi4-tiny",
            seed=6,
            pieces=300,
            hidden=64,
            feed_forward=128,
            layers=2,
            heads=8,
            kv_heads=2,
            dtype=torch.bfloat16,
            context=16384,
            original_context=16384,
            sliding_window=None,
            rope_theta=250000.0,
        ),
    ),
    (
        PHI4_MINI,
        TinyCheckpoint(
            "phi4-mini-tiny",
            seed=7,
            pieces=300,
            hidden=64,
            feed_forward=128,
            layers=2,
            heads=4,
            kv_heads=2,
            dtype=torch.bfloat16,
            sliding_window=262144,
            original_context=128,
            rope_type="longrope",
            rotary_share=0.75,
            tied=True,
        ),
    ),
)


def random_tensors(kind: TinyCheckpoint, rows: int) -> dict[str, torch.Tensor]:
    """The tensors of one kind, in the order of the release."""
    w = RandomWeights(kind.seed, kind.dtype)
    n, kv = kind.hidden, kind.kv_heads * kind.head_size
    gain = 3.0 if kind.tied else np.sqrt(n)  # tied: logits as large as the others'
    tensors = {"model.embed_tokens.weight": w.matrix(rows, n, gain=gain)}
    for i in range(kind.layers):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "input_layernorm.weight": w.norm(n),
            layer + "mlp.down_proj.weight": w.matrix(n, kind.feed_forward, gain=LAYER_GAIN),
            layer + "mlp.gate_up_proj.weight": w.matrix(2 * kind.feed_forward, n),
            layer + "post_attention_layernorm.weight": w.norm(n),
            layer + "self_attn.o_proj.weight": w.matrix(n, n, gain=LAYER_GAIN),
            layer + "self_attn.qkv_proj.weight": w.matrix(n + 2 * kv, n),
        }
    tensors["model.norm.weight"] = w.norm(n)
    if not kind.tied:
        tensors["lm_head.weight"] = w.matrix(rows, n, gain=2.0)
    return tensors


def base_config(
    kind: TinyCheckpoint, rows: int, *, special: Mapping[str, int]
) -> dict[str, object]:
    """The fields that both layouts of config.json share; ``special`` has ids of tokens."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special["bos"],
        "embd_pdrop": 0.0,
        "eos_token_id": special["eos"],
        "hidden_act": "silu",
        "hidden_size": kind.hidden,
        "initializer_range": 0.02,
        "intermediate_size": kind.feed_forward,
        "max_position_embeddings": kind.context,
        "model_type": "phi3",
        "num_attention_heads": kind.heads,
        "num_hidden_layers": kind.layers,
        "num_key_value_heads": kind.kv_heads,
        "original_max_position_embeddings": kind.original_context,
        "pad_token_id": special["pad"],
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "sliding_window": kind.sliding_window,
        "tie_word_embeddings": kind.tied,
        "use_cache": True,
        "vocab_size": rows,
    }


def old_config(kind: TinyCheckpoint, base: Mapping[str, object]) -> dict[str, object]:
    """The layout of the releases of 2024: rope_theta and rope_scaling at the top."""
    scaling = {"type": kind.rope_type, **kind.rope_factors} if kind.rope_type else None
    partial = {"partial_rotary_factor": kind.rotary_share} if kind.rotary_share < 1 else {}
    dtype = str(kind.dtype).removeprefix("torch.")
    rope = {"rope_scaling": scaling, "rope_theta": kind.rope_theta}
    return {**base, **partial, **rope, "torch_dtype": dtype}


def new_config(kind: TinyCheckpoint, base: Mapping[str, object]) -> dict[str, object]:
    """The layout that transformers 5 writes: everything about RoPE in rope_parameters."""
    parameters: dict[str, object] = {
        "partial_rotary_factor": kind.rotary_share,
        "rope_theta": kind.rope_theta,
    }
    if kind.rope_type:
        parameters |= {
            "original_max_position_embeddings": kind.original_context,
            "rope_type": "longrope",
            **kind.rope_factors,
        }
    else:
        parameters["rope_type"] = "default"
    dtype = str(kind.dtype).removeprefix("torch.")
    return {**base, "dtype": dtype, "rope_parameters": parameters}


def write_sentencepiece(
    folder: Path, kind: TinyCheckpoint, *, tokenizer_json: bool = False
) -> ChatTokenizer:
    """Train and write the tokenizer of Phi-3; few characters, so that its vocabulary is small."""
    model = train_pieces([text.lower() for text in stories(3000, kind.seed)], size=kind.pieces)
    write_tokenizer(folder, model, max_length=kind.context)
    write_generation_config(folder, model)
    if tokenizer_json:
        write_tokenizer_json(folder, model)
    return ChatTokenizer(model)


def write_checkpoint(kind: TinyCheckpoint, folder: Path) -> None:
    """Write the complete checkpoint folder of ``kind``, replacing what was there."""
    new_folder(folder)
    tokenizer = write_sentencepiece(folder, kind, tokenizer_json=kind.tokenizer_json)
    rows = tokenizer.padded_size
    end = tokenizer.markers["<|endoftext|>"]
    base = base_config(kind, rows, special={"bos": 1, "eos": end, "pad": end})
    if kind.both_layouts:
        write_config(folder, new_config(kind, base))
        write_config(folder, old_config(kind, base), name="config.rope_scaling.json")
    else:
        write_config(folder, old_config(kind, base))
    write_tensors(folder, random_tensors(kind, rows), shards=kind.shards, index=kind.index)


def write_bpe_checkpoint(tokenizer: BPEKind, kind: TinyCheckpoint, folder: Path) -> None:
    """Write the checkpoint folder of a Phi-4 kind; its embedding has rows beyond the tokens."""
    new_folder(folder)
    files = BPEFiles(tokenizer, seed=kind.seed, size=kind.pieces, max_length=kind.context)
    files.write(folder)
    rows = padded_rows(len(files.tokens))
    end = files.ids["<|endoftext|>"]
    ids = {"bos": end, "eos": files.ids[tokenizer.end], "pad": files.ids[tokenizer.pad or ""]}
    base = base_config(kind, rows, special=ids)
    write_config(folder, old_config(kind, base))
    write_tensors(folder, random_tensors(kind, rows), shards=kind.shards, index=kind.index)


def padded_rows(tokens: int, *, multiple: int = 64) -> int:
    """Rows of an embedding that has some without a token."""
    return (tokens // multiple + 1) * multiple
