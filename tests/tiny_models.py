"""Models small enough to quantize in milliseconds, written by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Kind:
    """A model small enough to quantize in milliseconds.

    ``shapes`` are of each layer's matrices, ``vectors`` the names of what has one axis in each.
    """

    name: str
    architecture: str
    n_layer: int = 8
    n_head_kv: int = 4
    n_expert: int = 0
    tied: bool = False
    odd: bool = False
    rough: bool = False
    dtype: str = "F16"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vectors: tuple[str, ...] = ("attn_norm.weight",)
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


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

# One of each architecture, with the tensors that its real models have.
ATTENTION = {"attn_q": (3, 256), "attn_k": (2, 256), "attn_v": (2, 256), "attn_output": (3, 256)}
ATTENTION_BIASES = tuple(f"{name}.bias" for name in ATTENTION)
NORM = ("attn_norm.weight", "attn_norm.bias")
ARCHITECTURES = {
    kind.architecture: kind
    for kind in (
        Kind(
            "phi3",
            "phi3",
            shapes={k: (shape[0] // 4 - 1, shape[1]) for k, shape in FUSED.items()},
            vectors=("attn_norm.weight", "ffn_norm.weight"),
            extra={"rope_factors_long.weight": (32,), "rope_factors_short.weight": (32,)},
        ),
        Kind(
            "phi2",
            "phi2",
            n_layer=16,
            shapes={**ATTENTION, "ffn_up": (3, 256), "ffn_down": (2, 512)},
            vectors=(*NORM, *ATTENTION_BIASES, "ffn_up.bias", "ffn_down.bias"),
            extra={"output_norm.bias": (256,), "output.bias": (40,)},
        ),
        Kind(
            "phimoe",
            "phimoe",
            n_head_kv=1,
            n_expert=16,
            shapes={
                **ATTENTION,
                "ffn_gate_inp": (16, 256),
                "ffn_gate_exps": (16, 1, 256),
                "ffn_up_exps": (16, 2, 256),
                "ffn_down_exps": (16, 1, 256),
            },
            vectors=(*NORM, *ATTENTION_BIASES, "ffn_norm.weight", "ffn_norm.bias"),
            extra={
                "output_norm.bias": (256,),
                "output.bias": (40,),
                "rope_factors_long.weight": (32,),
                "rope_factors_short.weight": (32,),
            },
        ),
        Kind(
            "llama",
            "llama",
            n_head_kv=2,
            shapes={
                **ATTENTION,
                "ffn_gate": (5, 256),
                "ffn_up": (5, 256),
                "ffn_down": (3, 512),
            },
            vectors=("attn_norm.weight", "ffn_norm.weight"),
        ),
    )
}
DTYPES = ("F16", "BF16", "F32")
KINDS_OF_MODELS = {
    kind.name: kind
    for model in ARCHITECTURES.values()
    for kind in (
        replace(model, name=f"{model.name}-{dtype}", dtype=dtype, rough=True) for dtype in DTYPES
    )
}
# 80 layers and shared heads are what makes a Llama one of 70B, for which there is a rule.
SEVENTY = Kind(
    "seventy",
    "llama",
    n_layer=80,
    n_head_kv=1,
    dtype="BF16",
    shapes={"attn_v": (2, 256), "ffn_down": (2, 256)},
)
# The rule holds for other architectures, too.
SEVENTY_QWEN2 = replace(SEVENTY, name="seventy-qwen2", architecture="qwen2")
# Fewer experts than the rules look for, and none of the layers in the order of the rules' count.
FEW_EXPERTS = replace(
    ARCHITECTURES["phimoe"],
    name="few-experts",
    n_expert=2,
    dtype="F32",
    shapes={
        **ATTENTION,
        "ffn_gate_inp": (2, 256),
        "ffn_gate_exps": (2, 3, 256),
        "ffn_up_exps": (2, 3, 256),
        "ffn_down_exps": (2, 3, 256),
    },
)
PLAIN = replace(ARCHITECTURES["llama"], name="plain", dtype="F32")
# Rows as long as those of real models, and enough of them to be shared among threads.
WIDE = Kind(
    "wide",
    "phi3",
    n_layer=1,
    dtype="BF16",
    rough=True,
    shapes={"attn_qkv": (96, 3072), "ffn_down": (40, 8192)},
)
ALL_KINDS = {
    **KINDS,
    **KINDS_OF_MODELS,
    **{kind.name: kind for kind in (SEVENTY, SEVENTY_QWEN2, FEW_EXPERTS, PLAIN, WIDE)},
}


def tensors_of(kind: Kind) -> dict[str, npt.NDArray[np.float32]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (40, 256)}
    if not kind.tied:
        shapes["output.weight"] = (40, 256)
    shapes["output_norm.weight"] = (256,)
    shapes |= kind.extra
    for i in reversed(range(kind.n_layer)):
        for name in kind.vectors:
            shapes[f"blk.{i}.{name}"] = (256,)
        for name, shape in kind.shapes.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
    if kind.odd:
        shapes["blk.1.narrow.weight"] = (8, 96)
        shapes["blk.1.narrower.weight"] = (8, 80)
        shapes["blk.1.bias"] = (80,)
    random = np.random.default_rng(20261122)
    tensors = {n: random.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}
    if kind.rough:
        for values in tensors.values():
            _roughen(values, random)
    return tensors


def _roughen(values: npt.NDArray[np.float32], random: np.random.Generator) -> None:
    """Rows of every size, outliers, blocks of nothing and of one number."""
    if values.ndim < 2:
        return
    rows = values.reshape(-1, values.shape[-1])
    rows *= random.lognormal(0, 2, (len(rows), 1)).astype(np.float32)
    rows[random.random(rows.shape) < 0.002] *= 30
    for row in rows[:: 1 + len(rows) // 2]:
        block = 32 * int(random.integers(row.size // 32))
        row[block : block + 32] = 0
        row[(block + 64) % row.size :][:32] = row[0]


def write_source(
    path: Path, kind: Kind, *, max_tensors: int = 0, first_empty: bool = False
) -> Path:
    """Writes a model; in parts of so many tensors, where that is given: the first one's path."""
    writer = gguf.GGUFWriter(
        path, kind.architecture, split_max_tensors=max_tensors, small_first_shard=first_empty
    )
    writer.add_block_count(kind.n_layer)
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
    parts = sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
    return parts[0] if max_tensors else path


def importances(kind: Kind) -> dict[str, npt.NDArray[np.float32]]:
    """For every matrix; of rough models, as llama-imatrix finds them: of products alone."""
    random = np.random.default_rng(7)
    found = {
        name: random.uniform(0.01, 4, (*values.shape[:-2], values.shape[-1])).astype(np.float32)
        for name, values in tensors_of(kind).items()
        if values.ndim > 1
    }
    if kind.rough:
        for values in found.values():
            values **= 8
            values[random.random(values.shape) < 0.01] = 0
        del found["token_embd.weight"], found["output.weight"]
    return found
