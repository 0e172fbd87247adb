"""Tiny random checkpoints of phi-1.5 and phi-2 (PhiForCausalLM)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reference_bpe import CODEGEN, ENDOFTEXT, BPEFiles
from reference_checkpoints import padded_rows
from reference_weights import LAYER_GAIN, RandomWeights, new_folder, write_config, write_tensors

CONTEXT = 2048


@dataclass(frozen=True)
class TinyPhi2:
    """What distinguishes one tiny checkpoint from the others."""

    name: str
    seed: int
    rotary_share: float
    hidden: int = 64
    feed_forward: int = 256
    layers: int = 2
    heads: int = 4
    size: int = 300
    dtype: torch.dtype = torch.float16
    shards: int = 1


PHI2_CHECKPOINTS = (
    TinyPhi2("phi1.5-tiny", seed=8, rotary_share=0.5, layers=1),
    TinyPhi2("phi2-tiny", seed=9, rotary_share=0.4, feed_forward=224, shards=2),
)


def config_of(kind: TinyPhi2, rows: int, end: int) -> dict[str, object]:
    return {
        "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "embd_pdrop": 0.0,
        "eos_token_id": end,
        "hidden_act": "gelu_new",
        "hidden_size": kind.hidden,
        "initializer_range": 0.02,
        "intermediate_size": kind.feed_forward,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi",
        "num_attention_heads": kind.heads,
        "num_hidden_layers": kind.layers,
        "num_key_value_heads": None if kind.rotary_share == 0.5 else kind.heads,
        "partial_rotary_factor": kind.rotary_share,
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": str(kind.dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": rows,
    }


def random_tensors(kind: TinyPhi2, rows: int) -> dict[str, torch.Tensor]:
    """The tensors of one kind, in the order of the release."""
    w = RandomWeights(kind.seed, kind.dtype)
    n = kind.hidden
    tensors = {"model.embed_tokens.weight": w.matrix(rows, n, gain=np.sqrt(n))}

    def linear(name: str, n_out: int, n_in: int, gain: float) -> None:
        tensors[name + ".weight"] = w.matrix(n_out, n_in, gain=gain)
        tensors[name + ".bias"] = w.bias(n_out)

    def layer_norm(name: str) -> None:
        tensors[name + ".weight"] = w.norm(n)
        tensors[name + ".bias"] = w.bias(n)

    for i in range(kind.layers):
        layer = f"model.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(layer + "self_attn." + part, n, n, gain=1.0)
        linear(layer + "self_attn.dense", n, n, gain=LAYER_GAIN)
        linear(layer + "mlp.fc1", kind.feed_forward, n, gain=1.0)
        linear(layer + "mlp.fc2", n, kind.feed_forward, gain=LAYER_GAIN)
        layer_norm(layer + "input_layernorm")
    layer_norm("model.final_layernorm")
    linear("lm_head", rows, n, gain=2.0)
    return tensors


def write_phi2(kind: TinyPhi2, folder: Path) -> None:
    """Write the complete checkpoint folder of ``kind``, replacing what was there."""
    new_folder(folder)
    files = BPEFiles(CODEGEN, seed=kind.seed, size=kind.size, max_length=CONTEXT)
    files.write(folder)
    rows = padded_rows(len(files.tokens), multiple=16)
    write_config(folder, config_of(kind, rows, files.ids[ENDOFTEXT]))
    write_tensors(folder, random_tensors(kind, rows), shards=kind.shards)
