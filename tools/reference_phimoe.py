"""Tiny random checkpoints of Phi-3.5-MoE and of SlimMoE, and one that transformers itself saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from nano_corpus import stories
from nano_tokenizer import (
    ChatTokenizer,
    train_pieces,
    write_generation_config,
    write_tokenizer,
)
from nano_tokenizer_json import write_tokenizer_json
from reference_weights import (
    LAYER_GAIN,
    RandomWeights,
    new_folder,
    rope_factors,
    write_config,
    write_tensors,
)

CONTEXT = 4096
EXPERTS = 4
# Small, so that the best token seldom hangs on a near tie of two experts, which rounding may turn.
EXPERT_GAIN = 0.15
USED_EXPERTS = 2


@dataclass(frozen=True)
class TinyPhiMoE:
    """What distinguishes one tiny checkpoint from the others."""

    name: str
    seed: int
    feed_forward: int
    head_size: int
    sliding_window: int | None
    original_context: int | None
    mscale: tuple[float, float] | None
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    pieces: int = 305
    dtype: torch.dtype = torch.bfloat16


PHIMOE = TinyPhiMoE(
    "phimoe-tiny",
    seed=304,
    feed_forward=32,
    head_size=16,
    sliding_window=131072,
    original_context=128,
    mscale=(1.243163121016122, 1.1),
)
PHIMOE_HF = TinyPhiMoE(
    "phimoe-hf-tiny",
    seed=232,
    feed_forward=32,
    head_size=16,
    sliding_window=None,
    original_context=128,
    mscale=(1.243163121016122, 1.35),
)
SLIMMOE = TinyPhiMoE(
    "slimmoe-tiny",
    seed=496,
    feed_forward=48,
    head_size=24,
    sliding_window=64,
    original_context=None,
    mscale=None,
    kv_heads=1,
    layers=1,
)
PHIMOE_CHECKPOINTS = (PHIMOE, PHIMOE_HF, SLIMMOE)


def config_of(kind: TinyPhiMoE, rows: int, end: int) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["PhiMoEForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_dropout": 0.0,
        "hidden_size": kind.hidden,
        "initializer_range": 0.02,
        "input_jitter_noise": 0.01,
        "intermediate_size": kind.feed_forward,
        "lm_head_bias": True,
        "max_position_embeddings": CONTEXT,
        "model_type": "phimoe",
        "num_attention_heads": kind.heads,
        "num_experts_per_tok": USED_EXPERTS,
        "num_hidden_layers": kind.layers,
        "num_key_value_heads": kind.kv_heads,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.0,
        "router_jitter_noise": 0.01,
        "sliding_window": kind.sliding_window,
        "tie_word_embeddings": False,
        "torch_dtype": str(kind.dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": rows,
    }
    if kind.head_size * kind.heads != kind.hidden:
        config["head_dim"] = kind.head_size
    if kind.mscale:
        config["original_max_position_embeddings"] = kind.original_context
        config["rope_scaling"] = {
            "type": "longrope",
            "original_max_position_embeddings": kind.original_context,
            "short_mscale": kind.mscale[0],
            "long_mscale": kind.mscale[1],
            **rope_factors(kind.seed, kind.head_size),
        }
    return config


def random_tensors(kind: TinyPhiMoE, rows: int) -> dict[str, torch.Tensor]:
    """The tensors of one kind, in the order of the release."""
    w = RandomWeights(kind.seed, kind.dtype)
    n, width = kind.hidden, kind.feed_forward
    q, kv = kind.heads * kind.head_size, kind.kv_heads * kind.head_size
    tensors = {"model.embed_tokens.weight": w.matrix(rows, n, gain=np.sqrt(n))}

    def layer_norm(name: str) -> None:
        tensors[name + ".weight"] = w.norm(n)
        tensors[name + ".bias"] = w.bias(n)

    for i in range(kind.layers):
        layer = f"model.layers.{i}."
        for part, n_out, n_in, gain in (
            ("q_proj", q, n, 1.0),
            ("k_proj", kv, n, 1.0),
            ("v_proj", kv, n, 1.0),
            ("o_proj", n, q, LAYER_GAIN),
        ):
            tensors[f"{layer}self_attn.{part}.weight"] = w.matrix(n_out, n_in, gain=gain)
            tensors[f"{layer}self_attn.{part}.bias"] = w.bias(n_out)
        moe = layer + "block_sparse_moe."
        tensors[moe + "gate.weight"] = w.matrix(EXPERTS, n)
        for expert in range(EXPERTS):
            name = f"{moe}experts.{expert}."
            tensors[name + "w1.weight"] = w.matrix(width, n)
            tensors[name + "w2.weight"] = w.matrix(n, width, gain=EXPERT_GAIN)
            tensors[name + "w3.weight"] = w.matrix(width, n)
        layer_norm(layer + "input_layernorm")
        layer_norm(layer + "post_attention_layernorm")
    layer_norm("model.norm")
    tensors["lm_head.weight"] = w.matrix(rows, n, gain=2.0)
    tensors["lm_head.bias"] = w.bias(rows)
    return tensors


def write_phimoe(kind: TinyPhiMoE, folder: Path) -> None:
    """Write the complete checkpoint folder of ``kind``, replacing what was there."""
    new_folder(folder)
    texts = [text.lower() for text in stories(3000, kind.seed)]
    model = train_pieces(texts, size=kind.pieces)
    tokenizer = ChatTokenizer(model)
    rows = tokenizer.padded_size
    write_config(folder, config_of(kind, rows, tokenizer.markers["<|endoftext|>"]))
    write_tensors(folder, random_tensors(kind, rows))
    if kind is PHIMOE_HF:
        save_again(folder)
    write_tokenizer(folder, model, max_length=CONTEXT)
    write_tokenizer_json(folder, model)
    write_generation_config(folder, model)


def save_again(folder: Path) -> None:
    """Replace a released layout by what transformers writes after reading it."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    new_folder(folder)
    loaded.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
