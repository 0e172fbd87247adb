"""Adapters made and merged by PEFT: tests/data/lora_<case>/ and lora_<case>.npz.

Each base is tiny and all zeros, so that what PEFT merges into it is alpha / r * B @ A itself, exact
to float32. Beside the adapter lies the base's config.json, which is all that a conversion asks for.
Needs torch, transformers 5 and peft; python tools/reference_lora.py writes all cases anew.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, PhimoeConfig, PhimoeForCausalLM
from transformers.models.phi3 import Phi3Config, Phi3ForCausalLM

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, ROWS, EXPERTS = 16, 4, 2, 2, 24, 40, 3

Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One adapter: its base, and what LoraConfig is told."""

    name: str
    base: Callable[[], tuple[nn.Module, Config]]
    lora: Config = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def sizes() -> Config:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "vocab_size": ROWS,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def phi3() -> tuple[nn.Module, Config]:
    fields = {**sizes(), "num_key_value_heads": KV_HEADS, "original_max_position_embeddings": 4096}
    model = Phi3ForCausalLM(Phi3Config(**fields))
    document = {**fields, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    return model, {**document, "rope_theta": 10000.0, "rms_norm_eps": 1e-5}


def phi2() -> tuple[nn.Module, Config]:
    fields = {**sizes(), "partial_rotary_factor": 0.5, "tie_word_embeddings": False}
    model = PhiForCausalLM(PhiConfig(**fields))
    document = {**fields, "architectures": ["PhiForCausalLM"], "model_type": "phi"}
    return model, {
        **document,
        "num_key_value_heads": HEADS,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "gelu_new",
    }


def phimoe_config() -> Config:
    return {
        **sizes(),
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "attention_bias": True,
        "lm_head_bias": True,
    }


def phimoe_document() -> Config:
    return {
        **phimoe_config(),
        "architectures": ["PhiMoEForCausalLM"],
        "model_type": "phimoe",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "router_jitter_noise": 0.01,
        "sliding_window": 2047,
        "hidden_act": "silu",
    }


def phimoe() -> tuple[nn.Module, Config]:
    """As transformers 5 has it: the experts of a layer in two parameters."""
    return PhimoeForCausalLM(PhimoeConfig(**phimoe_config())), phimoe_document()


class Expert(nn.Module):
    """The modules of one expert under the names of the release."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(HIDDEN, FEED_FORWARD, bias=False)
        self.w2 = nn.Linear(FEED_FORWARD, HIDDEN, bias=False)
        self.w3 = nn.Linear(HIDDEN, FEED_FORWARD, bias=False)


def named(names: dict[str, nn.Module]) -> nn.Module:
    module = nn.Module()
    for name, inner in names.items():
        module.add_module(name, inner)
    return module


def phimoe_released() -> tuple[nn.Module, Config]:
    """As the remote code of the release has it: a Linear for each matrix of each expert."""
    layers = []
    for _ in range(LAYERS):
        experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        query = named({"q_proj": nn.Linear(HIDDEN, HIDDEN)})
        block = named({"gate": gate, "experts": experts})
        layers.append(named({"self_attn": query, "block_sparse_moe": block}))
    return named({"model": named({"layers": nn.ModuleList(layers)})}), phimoe_document()


ATTENTION = ["q_proj", "k_proj", "v_proj"]
CASES = (
    Case(
        "phi3",
        phi3,
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": [
                *("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head")
            ],
            "rank_pattern": {r"layers\.1\.mlp\.down_proj": 2, "lm_head": 3},
            "alpha_pattern": {"o_proj": 5, r"model\.layers\.0\.self_attn\.qkv_proj": 9},
        },
    ),
    Case(
        "phi3_rslora",
        phi3,
        {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": ["qkv_proj", "down_proj"]},
        torch.bfloat16,
    ),
    Case(
        "phi2",
        phi2,
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": [*ATTENTION, "dense", "fc1", "fc2", "lm_head", "embed_tokens"],
        },
        torch.float16,
    ),
    Case(
        "phimoe",
        phimoe,
        {
            "r": 2,
            "lora_alpha": 8,
            "target_modules": [*ATTENTION, "o_proj", "router"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "rank_pattern": {r"layers\.1\.mlp\.experts\.down_proj": 3},
            "alpha_pattern": {"experts.gate_up_proj": 5},
        },
    ),
    Case(
        "phimoe_experts",
        phimoe_released,
        {
            "r": 3,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": r".*(q_proj|gate|experts\.[02]\.w[123]|experts\.1\.w2)",
            "rank_pattern": {r"experts\.2\.w1": 5},
        },
    ),
)


def filled(case: Case, seed: int) -> Any:
    """The adapter on its base of zeros, with numbers of about 1 in A and B."""
    model, _ = case.base()
    model.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    adapted = get_peft_model(model, LoraConfig(**case.lora))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if "lora_" in name:
                values = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
                rounded = torch.from_numpy(values).to(case.dtype)
                parameter.copy_(rounded)
    return adapted


def released_names(merged: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The changed weights by the names of the release; experts one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in merged.items():
        name = name.replace(".mlp.router.", ".block_sparse_moe.gate.")
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            found[name] = weight
            continue
        stem, _, which = name.replace(".mlp.", ".block_sparse_moe.").rpartition(".")
        for expert, matrix in enumerate(weight):
            if which == "down_proj":
                found[f"{stem}.{expert}.w2.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                found[f"{stem}.{expert}.w1.weight"] = gate
                found[f"{stem}.{expert}.w3.weight"] = up
    return {name: weight for name, weight in found.items() if weight.abs().max() > 0}


def write(case: Case, seed: int) -> None:
    folder = DATA / f"lora_{case.name}"
    shutil.rmtree(folder, ignore_errors=True)
    adapted = filled(case, seed)
    if case.dtype != torch.float32:
        adapted.to(case.dtype)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    # The order of PEFT's sets differs from run to run, and nobody's folder is of interest.
    for key in ("target_modules", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    config["base_model_name_or_path"] = "microsoft/a-tiny-one"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    text = json.dumps(case.base()[1], indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    merged = adapted.to(torch.float32).merge_and_unload().state_dict()
    deltas = {name: weight.numpy() for name, weight in released_names(merged).items()}
    np.savez_compressed(DATA / f"lora_{case.name}.npz", **deltas)
    print(f"{case.name}: {len(deltas)} weights")


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for seed, case in enumerate(CASES):
        write(case, seed)


if __name__ == "__main__":
    main()
