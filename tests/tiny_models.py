"""Models small enough to quantize in milliseconds, written by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

N_LAYER = 8


@dataclass(frozen=True)
class Kind:
    """A model small enough to quantize in milliseconds."""

    name: str
    architecture: str
    n_head_kv: int = 4
    n_expert: int = 0
    tied: bool = False
    odd: bool = False
    dtype: str = "F16"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


FUSED = {
    "attn_qkv": (48, 256),
    "attn_output": (16, 256),
    "ffn_up": (32, 256),
    "ffn_down": (16, 512),
}
EXPERTS = {
    "attn_q": (16, 256),
    "attn_k": (16, 256),
    "attn_v": (16, 256),
    "attn_output": (16, 256),
    "ffn_gate_inp": (8, 256),
    "ffn_gate_exps": (8, 5, 256),
    "ffn_up_exps": (8, 5, 256),
    "ffn_down_exps": (8, 5, 256),
}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("fused", "phi3", shapes=FUSED),
        Kind("gqa", "phi3", n_head_kv=1, shapes=FUSED, dtype="BF16"),
        Kind("odd", "phi3", shapes=FUSED, odd=True, dtype="F32"),
        Kind("tied", "phi3", shapes=FUSED, tied=True),
        Kind("experts", "phimoe", n_expert=8, shapes=EXPERTS, dtype="BF16"),
        Kind("blocks", "phi3", shapes=FUSED, dtype="Q8_0"),
    )
}


def tensors_of(kind: Kind) -> dict[str, npt.NDArray[np.float32]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (40, 256)}
    if not kind.tied:
        shapes["output.weight"] = (40, 256)
    shapes["output_norm.weight"] = (256,)
    for i in reversed(range(N_LAYER)):
        shapes[f"blk.{i}.attn_norm.weight"] = (256,)
        for name, shape in kind.shapes.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
    if kind.odd:
        shapes["blk.1.narrow.weight"] = (8, 96)
        shapes["blk.1.narrower.weight"] = (8, 80)
        shapes["blk.1.bias"] = (80,)
    random = np.random.default_rng(20261122)
    return {n: random.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}


def write_source(path: Path, kind: Kind) -> Path:
    writer = gguf.GGUFWriter(path, kind.architecture)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(kind.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(40)
    writer.add_file_type(1)
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_uint64("test.wide", 2**40)
    writer.add_array("test.words", ["a", "é"])
    if kind.n_expert:
        writer.add_expert_count(kind.n_expert)
        writer.add_expert_used_count(2)
    for name, values in tensors_of(kind).items():
        if values.ndim < 2:
            writer.add_tensor(name, values)
            continue
        type = gguf.GGMLQuantizationType[kind.dtype]
        writer.add_tensor(name, gguf.quants.quantize(values, type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def importances(kind: Kind) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(7)
    return {
        name: random.uniform(0.01, 4, (*values.shape[:-2], values.shape[-1])).astype(np.float32)
        for name, values in tensors_of(kind).items()
        if values.ndim > 1
    }
