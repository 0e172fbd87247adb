"""The checkpoint folder of phi3-nano: configuration and two safetensors shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Phi3Config, Phi3ForCausalLM

HIDDEN = 256
FEED_FORWARD = 512
LAYERS = 4
HEADS = 4
CONTEXT = 4096
SLIDING_WINDOW = 2047


def new_model(rows: int, *, eos_token_id: int) -> Phi3ForCausalLM:
    """A Phi-3 of random weights with ``rows`` embedding rows."""
    config = Phi3Config(
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        sliding_window=SLIDING_WINDOW,
        bos_token_id=1,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return Phi3ForCausalLM(config)


def write_config(folder: Path, *, rows: int, eos_token_id: int) -> None:
    """Write config.json with the fields, in the layout, of Phi-3-mini-4k-instruct's release."""
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": eos_token_id,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "original_max_position_embeddings": CONTEXT,
        "pad_token_id": eos_token_id,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": SLIDING_WINDOW,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": rows,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], *, shards: int) -> dict[str, str]:
    """Write ``tensors`` in order into files of about equal size; returns tensor -> file."""
    total = sum(t.nbytes for t in tensors.values())
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    done = 0
    for name, tensor in tensors.items():
        parts[min(done * shards // total, shards - 1)][name] = tensor.contiguous()
        done += tensor.nbytes
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes it readable by its owner alone
        weight_map |= dict.fromkeys(part, file)
    return weight_map


def write_index(folder: Path, tensors: dict[str, torch.Tensor], weight_map: dict[str, str]) -> None:
    """Write model.safetensors.index.json."""
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def bfloat16_tensors(model: Phi3ForCausalLM) -> dict[str, torch.Tensor]:
    return {name: t.detach().to(torch.bfloat16) for name, t in model.state_dict().items()}
