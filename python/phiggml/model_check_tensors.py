"""A model's tensors: types that ggml computes with, and the shapes of known architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from phiggml.gguf import GGUFFile, GGUFTensor
from phiggml.model_check_hyperparameters import Hyperparameters
from phiggml.model_check_metadata import ModelFaults

__all__ = ["check_known_tensors", "check_tensor_types"]

_NO_WEIGHTS = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
"""Types of tensors with which the CPU's products end the process."""

_ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")


def check_tensor_types(file: GGUFFile, faults: ModelFaults, *, n_expert: int) -> None:
    """Gathers the tensors that ggml ends the process on, in any architecture.

    Args:
        file: the model.
        faults: where they go.
        n_expert: the experts that it has.

    Cost:
        Reads the tables that choose experts by token.

    Source:
        binary-ops.cpp, ggml_rope_impl and the table of products in ggml; the assertions on NVFP4
        in llama_model_base::load_tensors and llm_graph_context::build_ffn.
    """
    for tensor in file.tensors.values():
        if tensor.type == "I32" and "tid2eid" in tensor.name:
            _check_chosen(tensor, n_expert, faults)
        elif tensor.type in _NO_WEIGHTS:
            faults.add(
                tensor.name, f"is {tensor.type}: ggml multiplies with no tensor of this type"
            )
        elif tensor.type != "F32" and _is_added_or_scales(tensor):
            faults.add(
                tensor.name, f"is {tensor.type}: ggml takes norms, biases and factors as F32"
            )
        elif tensor.type == "NVFP4":
            _check_nvfp4(file.tensors, tensor, faults)


def _check_chosen(tensor: GGUFTensor, n_expert: int, faults: ModelFaults) -> None:
    """A table from tokens to numbers of experts, which index the experts' weights."""
    chosen = tensor.read_rows().view("<i4")
    for offender in (int(chosen.min()), int(chosen.max())):
        if not 0 <= offender < n_expert:
            faults.add(tensor.name, f"chooses expert {offender}, of {n_expert}")


def _is_added_or_scales(tensor: GGUFTensor) -> bool:
    return len(tensor.shape) <= 1 or tensor.name.endswith(("norm.weight", ".bias", "scale"))


def _check_nvfp4(
    tensors: Mapping[str, GGUFTensor], tensor: GGUFTensor, faults: ModelFaults
) -> None:
    stem = tensor.name.removesuffix(".weight")
    if {f"{stem}.scale", f"{stem}.bias"} <= tensors.keys():
        faults.add(tensor.name, "is NVFP4 with a scale and a bias, which ggml does not compute")
    if stem == "token_embd" and "output.weight" not in tensors:
        for name in ("output.scale", "output.input_scale"):
            if name in tensors:
                faults.add(name, "scales an output.weight of NVFP4 that is not there")


def check_known_tensors(
    file: GGUFFile, architecture: str, shape: Hyperparameters, *, n_vocab: int, faults: ModelFaults
) -> None:
    """Gathers what is missing or misshapen in a model of a known architecture.

    Args:
        file: the model.
        architecture: one of KNOWN.
        shape: its hyperparameters, which are sound.
        n_vocab: tokens of its vocabulary.
        faults: where they go.

    Cost:
        Reads the few factors of rotary positions.

    Source:
        load_arch_tensors in llama.cpp's src/models/<architecture>.cpp and in csrc/arch;
        create_tensor_qkv.
    """
    sizes = _sizes(shape, n_vocab)
    for name, axes in _expected(architecture, shape, file.tensors):
        tensor = file.tensors.get(name)
        wanted = tuple(sizes[axis] for axis in axes.removeprefix("?").split())
        if tensor is None:
            if not axes.startswith("?"):
                faults.add(name, f"is missing: it must have shape {_written(wanted)}")
        elif tensor.shape != wanted:
            faults.add(name, f"has shape {_written(tensor.shape)}: it must be {_written(wanted)}")
    for name in file.tensors:
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer and int(layer[1]) >= shape.n_layer:
            faults.add(name, f"is beyond the {shape.n_layer} layers of {architecture}.block_count")
            break
    _check_rope_factors(file.tensors, shape.n_rot, faults)


def _written(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _sizes(shape: Hyperparameters, n_vocab: int) -> dict[str, int]:
    """What the letters in a layout stand for."""
    q, kv = shape.n_head * shape.n_embd_head, shape.n_head_kv * shape.n_embd_head
    return {
        "V": n_vocab,
        "E": shape.n_embd,
        "F": shape.n_ff,
        "2F": 2 * shape.n_ff,
        "Q": q,
        "KV": kv,
        "QKV": q + 2 * kv,
        "X": shape.n_expert,
    }


# Tensor -> axes in numpy's order, in letters of _sizes; those with "?" may be absent.
Layout = Mapping[str, str]

_WHOLE: Layout = {"token_embd": "V E", "output_norm": "E", "output": "?V E"}
_BIASED_WHOLE: Layout = {**_WHOLE, "output": "V E", "output_norm.bias": "E", "output.bias": "V"}
_MIXED_WHOLE: Layout = {**_WHOLE, "output_norm.bias": "E", "output.bias": "?V"}
_ATTENTION: Layout = {"attn_norm": "E", "attn_output": "E Q", "attn_output.bias": "?E"}
_FUSED: Layout = {"attn_qkv": "QKV E", "attn_qkv.bias": "?QKV"}
_SEPARATE: Layout = {"attn_q": "Q E", "attn_k": "KV E", "attn_v": "KV E"}
_BIASES: Layout = {"attn_q.bias": "?Q", "attn_k.bias": "?KV", "attn_v.bias": "?KV"}
_GATED: Layout = {
    "ffn_norm": "E",
    "ffn_gate": "F E",
    "ffn_down": "E F",
    "ffn_up": "F E",
    "ffn_gate.bias": "?F",
    "ffn_down.bias": "?E",
    "ffn_up.bias": "?F",
}
_EXPERTS: Layout = {
    "ffn_norm": "E",
    "ffn_gate_inp": "X E",
    "ffn_gate_exps": "X F E",
    "ffn_down_exps": "X E F",
    "ffn_up_exps": "X F E",
}
_WHOLES = {"phi2": _BIASED_WHOLE, "phimoe": _MIXED_WHOLE}
_LAYERS: Mapping[str, Layout] = {
    "phi2": {
        "attn_norm.bias": "E",
        "attn_output.bias": "E",
        "ffn_down": "E F",
        "ffn_down.bias": "E",
        "ffn_up": "F E",
        "ffn_up.bias": "F",
    },
    "phi3": {"ffn_norm": "E", "ffn_down": "E F", "ffn_up": "2F E"},
    "phimoe": {**_EXPERTS, "attn_norm.bias": "E", "ffn_norm.bias": "E"},
    "llama": _GATED,
    "qwen2": _GATED,
    "gemma": _GATED,
}


def _expected(
    architecture: str, shape: Hyperparameters, tensors: Mapping[str, GGUFTensor]
) -> Iterator[tuple[str, str]]:
    """(name, axes) of each tensor."""
    yield from ((_full(name), axes) for name, axes in _WHOLES.get(architecture, _WHOLE).items())
    layer = _LAYERS[architecture]
    if architecture == "llama" and shape.n_expert:
        layer = _EXPERTS
    for i in range(shape.n_layer):
        separate = any(f"blk.{i}.{_full(name)}" in tensors for name in _SEPARATE)
        usual = architecture in ("phi2", "phi3") and not separate
        fused = usual or f"blk.{i}.attn_qkv.weight" in tensors
        for part in (_ATTENTION, _FUSED if fused else _SEPARATE, _BIASES, layer):
            yield from ((f"blk.{i}.{_full(name)}", axes) for name, axes in part.items())


def _full(name: str) -> str:
    return name if "." in name else f"{name}.weight"


def _check_rope_factors(tensors: Mapping[str, GGUFTensor], n_rot: int, faults: ModelFaults) -> None:
    """Each of them divides the angle of one pair of numbers."""
    for name in _ROPE_FACTORS:
        tensor = tensors.get(name)
        if tensor is None or tensor.type != "F32":
            continue
        if tensor.shape != (n_rot // 2,):
            faults.add(name, f"has shape {_written(tensor.shape)}: it must be [{n_rot // 2}]")
            continue
        factors = tensor.read_rows().view("<f4")
        if not (np.isfinite(factors) & (factors > 0)).all():
            faults.add(name, "has factors that are zero, negative or not finite")
    long, short, _ = _ROPE_FACTORS
    if (long in tensors) != (short in tensors):
        present, absent = (long, short) if long in tensors else (short, long)
        faults.add(absent, f"is missing: {present} is there, and they come together")
