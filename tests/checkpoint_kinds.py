"""Tiny checkpoints of the other members of the family, and what each must become.

Names, shapes and the way from one to the other are written out once more here, apart from the
tables of the code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import checkpoints
from checkpoints import FACTORS, FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, LAYERS, ROWS

EXPERTS = 3
Shapes = dict[str, tuple[int, ...]]
Values = Mapping[str, npt.NDArray[np.float32]]
LONG = {
    "type": "longrope",
    "short_factor": list(FACTORS),
    "long_factor": [8 * f for f in FACTORS],
    "short_mscale": 1.25,
    "long_mscale": 1.5,
}


@dataclass(frozen=True)
class Kind:
    """A checkpoint: changes to config.json, and the shapes of its tensors."""

    fields: Mapping[str, Any]
    shapes: Shapes
    left_out: Shapes = field(default_factory=dict)

    def without(self, *names: str) -> Kind:
        return dataclasses.replace(
            self, shapes={n: s for n, s in self.shapes.items() if n not in names}
        )

    def having(self, shapes: Shapes, **fields: Any) -> Kind:
        return dataclasses.replace(
            self, shapes=self.shapes | shapes, fields={**self.fields, **fields}
        )


def phi2_shapes() -> Shapes:
    head_rows = {"q_proj": HIDDEN, "k_proj": 16, "v_proj": 16, "dense": HIDDEN}
    found: Shapes = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        matrices = {f"{prefix}self_attn.{name}": (n, HIDDEN) for name, n in head_rows.items()}
        matrices[prefix + "mlp.fc1"] = (FEED_FORWARD, HIDDEN)
        matrices[prefix + "mlp.fc2"] = (HIDDEN, FEED_FORWARD)
        for name, shape in matrices.items():
            found |= {name + ".weight": shape, name + ".bias": shape[:1]}
        found |= {f"{prefix}input_layernorm.{part}": (HIDDEN,) for part in ("weight", "bias")}
    found |= {f"model.final_layernorm.{part}": (HIDDEN,) for part in ("weight", "bias")}
    return found | {"lm_head.weight": (ROWS, HIDDEN), "lm_head.bias": (ROWS,)}


def expert_shapes(layer: int, *, fused: bool) -> Shapes:
    n, m = FEED_FORWARD, HIDDEN
    if fused:
        prefix = f"model.layers.{layer}.mlp."
        return {
            prefix + "router.weight": (EXPERTS, m),
            prefix + "experts.gate_up_proj": (EXPERTS, 2 * n, m),
            prefix + "experts.down_proj": (EXPERTS, m, n),
        }
    prefix = f"model.layers.{layer}.block_sparse_moe."
    found: Shapes = {prefix + "gate.weight": (EXPERTS, m)}
    for expert in range(EXPERTS):
        for name, shape in (("w1", (n, m)), ("w2", (m, n)), ("w3", (n, m))):
            found[f"{prefix}experts.{expert}.{name}.weight"] = shape
    return found


def phimoe_shapes(*, fused: bool, head_size: int, biased: bool) -> Shapes:
    q, kv = HEADS * head_size, KV_HEADS * head_size
    projections = {"q": (q, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, q)}
    found: Shapes = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in projections.items():
            found[f"{prefix}self_attn.{name}_proj.weight"] = shape
            if biased:
                found[f"{prefix}self_attn.{name}_proj.bias"] = shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{prefix}{norm}.{part}": (HIDDEN,) for part in ("weight", "bias")}
        found |= expert_shapes(layer, fused=fused)
    found |= {f"model.norm.{part}": (HIDDEN,) for part in ("weight", "bias")}
    found["lm_head.weight"] = (ROWS, HIDDEN)
    return found | ({"lm_head.bias": (ROWS,)} if biased else {})


def phi3_shapes(*, head_size: int = checkpoints.HEAD_SIZE) -> Shapes:
    found = checkpoints.shapes()
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.self_attn."
        found[prefix + "qkv_proj.weight"] = (head_size * (HEADS + 2 * KV_HEADS), HIDDEN)
        found[prefix + "o_proj.weight"] = (HIDDEN, head_size * HEADS)
    return found


def adapted() -> tuple[Shapes, Shapes]:
    """The tensors of Phi-4-multimodal: of its text part, and the rest."""
    text: Shapes = {}
    rest: Shapes = {
        "model.embed_tokens_extend.image_embed.img_projection.0.weight": (4, 4),
        "model.embed_tokens_extend.audio_embed.encoder.encoders.0.layer_norm.bias": (4,),
    }
    for name, shape in checkpoints.shapes().items():
        stem = name.removesuffix(".weight")
        if not stem.endswith("_proj"):
            text[name] = shape
            continue
        text[stem + ".base_layer.weight"] = shape
        for kind in ("vision", "speech"):
            rest[f"{stem}.lora_A.{kind}.weight"] = (2, shape[1])
            rest[f"{stem}.lora_B.{kind}.weight"] = (shape[0], 2)
    return text, rest


def _moe(**fields: Any) -> dict[str, Any]:
    return {
        "architectures": ["PhiMoEForCausalLM"],
        "model_type": "phimoe",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "attention_bias": True,
        "lm_head_bias": True,
        "rope_scaling": LONG,
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 128,
        **fields,
    }


def _named(name: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [name], "model_type": model_type}


_LEFT_OUT_V = {"model.vision_embed_tokens.img_projection.0.weight": (4, 4)}
_LEFT_OUT_4V = {
    "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight": (4, 4),
    "model.mm_projector.0.weight": (4, 4),
    "model.mm_projector.0.bias": (4,),
}
KINDS: Mapping[str, Kind] = {
    "phi2": Kind(
        {
            **_named("PhiForCausalLM", "phi"),
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "qk_layernorm": False,
        },
        phi2_shapes(),
    ),
    "phimoe": Kind(_moe(), phimoe_shapes(fused=False, head_size=8, biased=True)),
    "phimoe fused": Kind(
        _moe(architectures=["PhimoeForCausalLM"]),
        phimoe_shapes(fused=True, head_size=8, biased=True),
    ),
    "slimmoe": Kind(
        _moe(
            head_dim=16,
            attention_bias=False,
            lm_head_bias=False,
            rope_scaling=None,
            original_max_position_embeddings=...,
        ),
        phimoe_shapes(fused=False, head_size=16, biased=False),
    ),
    "phi3 of wide heads": Kind({"head_dim": 16}, phi3_shapes(head_size=16)),
    "phi3v": Kind(_named("Phi3VForCausalLM", "phi3_v"), phi3_shapes(), _LEFT_OUT_V),
    "phi4mm": Kind(_named("Phi4MMForCausalLM", "phi4mm"), *adapted()),
    "phi4 multimodal": Kind(
        _named("Phi4MultimodalForCausalLM", "phi4_multimodal"),
        phi3_shapes(),
        {"model.embed_tokens_extend.image_embed.img_projection_up.weight": (4, 4)},
    ),
    "phi4v": Kind(_named("Phi4ForCausalLMV", "phi4-siglip"), phi3_shapes(), _LEFT_OUT_4V),
}


def write_kind(
    folder: Path,
    kind: Kind,
    *,
    dtype: str = "BF16",
    dtypes: Mapping[str, str] | None = None,
    shards: int = 1,
    **changes: Any,
) -> dict[str, npt.NDArray[np.float32]]:
    """Write a whole checkpoint; returns what the tensors of its text part hold.

    ``dtypes`` are those of single tensors; ``changes`` go over the kind's fields.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    checkpoints.write_json(folder / "config.json", checkpoints.config(**{**kind.fields, **changes}))
    stored: dict[str, checkpoints.Stored] = {}
    values: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in (kind.shapes | kind.left_out).items():
        own = (dtypes or {}).get(name, dtype)
        stored[name], values[name] = checkpoints.stored_values(shape, own, rng)
    checkpoints.write_weights(folder, stored, shards=shards)
    checkpoints.write_tokenizer(folder)
    return {name: value for name, value in values.items() if name in kind.shapes}


# What each tensor is called on the other side -----------------------------------------------------

RENAMED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
}
EXPERTS_RENAMED = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


def _becomes(
    name: str, value: npt.NDArray[np.float32]
) -> Iterator[tuple[str, int, npt.NDArray[np.float32]]]:
    """(target, expert, values); the expert is -1 for what is no single expert's."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    block, rest = (f"blk.{layer[1]}.", name[layer.end() :]) if layer else ("", name)
    if one := re.fullmatch(r"block_sparse_moe\.experts\.(\d+)\.(w\d)\.weight", rest):
        yield f"{block}{EXPERTS_RENAMED[one[2]]}.weight", int(one[1]), value
    elif rest == "mlp.experts.gate_up_proj":
        gates, ups = np.split(value, 2, axis=1)
        yield block + "ffn_gate_exps.weight", -1, gates
        yield block + "ffn_up_exps.weight", -1, ups
    elif rest == "mlp.experts.down_proj":
        yield block + "ffn_down_exps.weight", -1, value
    else:
        stem, _, part = rest.replace(".base_layer", "").rpartition(".")
        yield f"{block}{RENAMED[stem]}.{part}", -1, value


def expected_tensors(values: Values) -> dict[str, npt.NDArray[np.float32]]:
    """What a GGUF file must hold, by its names, made from what the checkpoint holds."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    experts: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
    for name, value in values.items():
        for target, expert, part in _becomes(name, value):
            if expert < 0:
                found[target] = part
            else:
                experts.setdefault(target, {})[expert] = part
    for target, parts in experts.items():
        found[target] = np.stack([parts[i] for i in range(len(parts))])
    return found
