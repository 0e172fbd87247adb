"""Models of two layers that llama.cpp loads in milliseconds, made to be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gguf_bytes as gb
import phiggml as pg

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_VOCAB, N_EXPERT = 2, 64, 4, 2, 96, 288, 4
N_HEAD_DIM = N_EMBD // N_HEAD
N_QKV = N_EMBD + 2 * N_HEAD_KV * N_HEAD_DIM

ARCHITECTURES = ("phi2", "phi3", "phimoe", "llama", "llama-moe", "qwen2", "gemma")


_LAYOUT = gb.Layout()


@dataclass
class SmallModel:
    """Metadata and tensors of a model."""

    architecture: str
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def key(self, key: str) -> str:
        """The whole key of one that begins with a dot."""
        return self.architecture + key if key.startswith(".") else key

    def write(self, path: Path, layout: gb.Layout = _LAYOUT) -> Path:
        pairs = [_pair(layout, key, value) for key, value in self.metadata.items()]
        tensors, data = [], b""
        for name, values in self.tensors.items():
            if isinstance(values, pg.QuantizedArray):
                kind, stored = pg.QuantType(values.type).id, values.data
            else:
                kind, stored = _KINDS[values.dtype.name], values
            tensors.append(layout.tensor(name, values.shape[::-1], kind, offset=len(data)))
            data += stored.tobytes() + bytes(-stored.nbytes % 32)
        path.write_bytes(layout.gguf(pairs, tensors, data))
        return path

    def write_split(self, folder: Path) -> list[Path]:
        """Two parts, as llama-gguf-split makes them."""
        half = len(self.tensors) // 2
        tensors = list(self.tensors.items())
        paths = []
        for number, held in enumerate((tensors[:half], tensors[half:])):
            part = SmallModel(self.architecture, {} if number else dict(self.metadata), dict(held))
            part.metadata |= {
                "split.no": np.uint16(number),
                "split.count": np.uint16(2),
                "split.tensors.count": np.int32(len(tensors)),
            }
            paths.append(part.write(folder / f"small-{number + 1:05}-of-00002.gguf"))
        return paths


_KINDS = {"float32": gb.F32, "float16": gb.F16, "float64": gb.F64, "int32": gb.I32}


def _pair(layout: gb.Layout, key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return layout.pair(key, gb.STRING, layout.string(value))
    if not isinstance(value, pg.GGUFValue):
        value = pg.GGUFValue(value, "STRING" if isinstance(value, list) else value.dtype.name)
    kind = getattr(gb, value.type)
    if kind == gb.STRING:
        return layout.strings(key, value.value)
    if isinstance(value.value, list | np.ndarray):
        return layout.numbers(key, kind, list(value.value))
    return layout.number(key, kind, value.value)


Change = Callable[[SmallModel], object]


def small_model(name: str) -> SmallModel:
    """A sound model, one of ARCHITECTURES."""
    model = SmallModel(name.removesuffix("-moe"))
    model.metadata = {
        "general.architecture": model.architecture,
        "general.name": "small",
        **{
            model.key(key): np.uint32(value)
            for key, value in {
                ".context_length": 128,
                ".embedding_length": N_EMBD,
                ".block_count": N_LAYER,
                ".feed_forward_length": N_FF,
                ".attention.head_count": N_HEAD,
                ".attention.head_count_kv": N_HEAD_KV,
                ".rope.dimension_count": N_HEAD_DIM,
            }.items()
        },
        model.key(".rope.freq_base"): np.float32(10000),
    }
    for key in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        model.metadata[model.key(f".attention.{key}")] = np.float32(1e-5)
    if name.endswith("moe"):
        model.metadata[model.key(".expert_count")] = np.uint32(N_EXPERT)
        model.metadata[model.key(".expert_used_count")] = np.uint32(2)
    bytewise = model.architecture in ("phi2", "qwen2")
    model.metadata |= _merged_vocabulary() if bytewise else _scored_vocabulary()
    model.tensors = {key: _random(key, shape) for key, shape in _shapes(name).items()}
    return model


def _random(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if name.endswith("norm.weight") or name.startswith("rope_"):
        return np.ones(shape, np.float32)
    random = np.random.default_rng(len(name) + sum(shape))
    values = random.normal(0, 0.05, shape).astype(np.float32)
    return values if len(shape) == 1 or "gate_inp" in name else values.astype(np.float16)


def _scored_vocabulary() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *([6] * 256)]
    tokens += ["\u2581", "a", "b", "\u2581a", "ab", "<|end|>"]
    types += [1, 1, 1, 1, 1, 3]
    tokens += [f"token{i}" for i in range(N_VOCAB - len(tokens))]
    types += [1] * (N_VOCAB - len(types))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(N_VOCAB, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
    }


def _merged_vocabulary() -> dict[str, Any]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens += ["aa", "ab", "<|endoftext|>"]
    types = [1] * (len(tokens) - 1) + [3]
    tokens += [f"token{i}" for i in range(N_VOCAB - len(tokens))]
    types += [1] * (N_VOCAB - len(types))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a a", "a b"],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(258),
        "tokenizer.ggml.eos_token_id": np.uint32(258),
    }


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    biased = name in ("phi2", "phimoe")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, N_EMBD),
        "output_norm.weight": (N_EMBD,),
    }
    if name != "gemma":
        shapes["output.weight"] = (N_VOCAB, N_EMBD)
    if biased:
        shapes |= {"output_norm.bias": (N_EMBD,), "output.bias": (N_VOCAB,)}
    if name in ("phi3", "phimoe"):
        shapes |= {f"rope_factors_{side}.weight": (N_HEAD_DIM // 2,) for side in ("long", "short")}
    if name == "llama":
        shapes["rope_freqs.weight"] = (N_HEAD_DIM // 2,)
    for i in range(N_LAYER):
        shapes |= {f"blk.{i}.{key}": shape for key, shape in _layer(name, biased).items()}
    return shapes


def _layer(name: str, biased: bool) -> dict[str, tuple[int, ...]]:
    kv = N_HEAD_KV * N_HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (N_EMBD,),
        "attn_output.weight": (N_EMBD, N_EMBD),
    }
    if name != "phi2":
        shapes["ffn_norm.weight"] = (N_EMBD,)
    if name in ("phi2", "phi3"):
        shapes["attn_qkv.weight"] = (N_QKV, N_EMBD)
    else:
        shapes |= {f"attn_{part}.weight": (n, N_EMBD) for part, n in _parts(kv)}
    if name in ("phimoe", "qwen2"):
        shapes |= {f"attn_{part}.bias": (n,) for part, n in _parts(kv)}
    if name.endswith("moe"):
        shapes["ffn_gate_inp.weight"] = (N_EXPERT, N_EMBD)
        shapes |= {f"ffn_{part}_exps.weight": (N_EXPERT, N_FF, N_EMBD) for part in ("gate", "up")}
        shapes["ffn_down_exps.weight"] = (N_EXPERT, N_EMBD, N_FF)
    else:
        shapes["ffn_up.weight"] = (2 * N_FF if name == "phi3" else N_FF, N_EMBD)
        shapes["ffn_down.weight"] = (N_EMBD, N_FF)
        if name not in ("phi2", "phi3"):
            shapes["ffn_gate.weight"] = (N_FF, N_EMBD)
    if biased:
        shapes |= {"attn_norm.bias": (N_EMBD,), "attn_output.bias": (N_EMBD,)}
    if name == "phi2":
        shapes |= {"attn_qkv.bias": (N_QKV,), "ffn_up.bias": (N_FF,), "ffn_down.bias": (N_EMBD,)}
    if name == "phimoe":
        shapes["ffn_norm.bias"] = (N_EMBD,)
    return shapes


def _parts(kv: int) -> tuple[tuple[str, int], ...]:
    return (("q", N_EMBD), ("k", kv), ("v", kv))
