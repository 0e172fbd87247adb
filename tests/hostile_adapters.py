"""Adapter files with one thing wrong, and what each must end in. As a program, it loads and uses
all of them in one process and prints how each ended: `python hostile_adapters.py FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gguf_bytes as gb
import phiggml as pg
from small_models import N_EMBD, N_EXPERT, N_FF, N_QKV, N_VOCAB, SmallModel, small_model

RANK = 4
QKV, HEAD, EXPERTS = "blk.0.attn_qkv.weight", "output.weight", "blk.0.ffn_up_exps.weight"
EMBEDDING = "token_embd.weight"


@dataclass
class Adapter:
    """Metadata and tensors of an adapter, and the model that it is loaded for."""

    metadata: dict[str, Any]
    tensors: dict[str, Any]
    model: SmallModel = field(default_factory=lambda: small_model("phi3"))

    def write(self, path: Path) -> Path:
        return SmallModel("", self.metadata, self.tensors).write(path)


Change = Callable[[Adapter], object]


def ones(*shape: int) -> npt.NDArray[np.float32]:
    return np.full(shape, 0.01, np.float32)


def sound(architecture: str = "phi3") -> Adapter:
    metadata = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(8),
    }
    shapes = {HEAD: (N_VOCAB, N_EMBD), QKV: (N_QKV, N_EMBD)}
    if architecture == "phimoe":
        shapes = {EXPERTS: (N_EXPERT, N_FF, N_EMBD)}
    tensors = {}
    for name, (*experts, n_out, n_in) in shapes.items():
        tensors[f"{name}.lora_a"] = ones(*experts, RANK, n_in)
        tensors[f"{name}.lora_b"] = ones(*experts, n_out, RANK)
    return Adapter(metadata, tensors, small_model(architecture))


def put(key: str, value: Any, type: str | None = None) -> Change:
    def change(adapter: Adapter) -> None:
        adapter.metadata[key] = value if type is None else pg.GGUFValue(value, type)

    return change


def put_tensors(**tensors: Any) -> Change:
    return lambda adapter: adapter.tensors.update(tensors)


def pair(name: str, a: Any, b: Any) -> Change:
    return lambda adapter: adapter.tensors.update({f"{name}.lora_a": a, f"{name}.lora_b": b})


def drop(key: str) -> Change:
    def change(adapter: Adapter) -> None:
        adapter.metadata.pop(key, None)
        adapter.tensors.pop(key, None)

    return change


def with_value(name: str, value: float) -> Change:
    def change(adapter: Adapter) -> None:
        adapter.tensors[name].flat[-1] = value

    return change


def of_type(type: str) -> Change:
    def change(adapter: Adapter) -> None:
        a, b = ones(32, N_EMBD), ones(N_VOCAB, 32)
        pair(HEAD, pg.quantize(a, type), pg.quantize(b, type))(adapter)

    return change


def tied(adapter: Adapter) -> None:
    adapter.metadata["general.architecture"] = "gemma"
    adapter.model = small_model("gemma")
    adapter.tensors = {}
    pair(EMBEDDING, ones(N_VOCAB, RANK), ones(N_EMBD, RANK))(adapter)


def nvfp4(adapter: Adapter) -> None:
    name = "blk.0.ffn_up.weight"
    shape = adapter.model.tensors[name].shape
    adapter.model.tensors[name] = pg.quantize(ones(*shape), "NVFP4")
    pair(name, ones(RANK, shape[1]), ones(shape[0], RANK))(adapter)


Case = tuple[str, Change, str | None]
A, B = f"{HEAD}.lora_a", f"{HEAD}.lora_b"

METADATA: dict[str, tuple[Change, str | None]] = {
    "sound": (lambda _: None, None),
    "no alpha": (drop("adapter.lora.alpha"), None),
    "alpha 0": (put("adapter.lora.alpha", np.float32(0)), None),
    "alpha below 0": (put("adapter.lora.alpha", np.float32(-1e30)), None),
    "alpha NaN": (put("adapter.lora.alpha", np.float32(np.nan)), "must be finite"),
    "alpha infinite": (put("adapter.lora.alpha", np.float32(np.inf)), "must be finite"),
    "alpha of another type": (put("adapter.lora.alpha", 8, "UINT32"), "of type FLOAT32"),
    "alpha an array": (put("adapter.lora.alpha", np.ones(2, np.float32)), "of type FLOAT32"),
    "alpha a text": (put("adapter.lora.alpha", "8"), "of type FLOAT32"),
    "no type": (drop("general.type"), "general.type is missing"),
    "another type": (put("general.type", "model"), "must be 'adapter'"),
    "type a number": (put("general.type", 3, "UINT32"), "a text"),
    "no adapter type": (drop("adapter.type"), "adapter.type is missing"),
    "another adapter type": (put("adapter.type", "loha"), "must be 'lora'"),
    "adapter type an array": (put("adapter.type", ["lora"]), "a text"),
    "no architecture": (drop("general.architecture"), "general.architecture is missing"),
    "of another architecture": (put("general.architecture", "phi2"), "must be 'phi3'"),
    "architecture a number": (put("general.architecture", 3, "UINT32"), "a text"),
    "activated": (
        put("adapter.alora.invocation_tokens", np.arange(3, dtype=np.uint32)),
        "an activated LoRA",
    ),
    "activated by texts": (put("adapter.alora.invocation_tokens", ["x"]), "an activated LoRA"),
    "many values": (put("x", np.zeros(9 << 20, np.int32)), "has a header of"),
}

TENSORS: dict[str, tuple[Change, str | None]] = {
    "F16": (of_type("F16"), None),
    "Q8_0": (of_type("Q8_0"), None),
    "Q4_0": (of_type("Q4_0"), None),
    "MXFP4": (of_type("MXFP4"), None),
    "no tensors": (lambda adapter: adapter.tensors.clear(), "has no tensors"),
    "no A": (drop(A), "has no lora_a"),
    "no B": (drop(B), "has no lora_b"),
    "no suffix": (put_tensors(x=ones(2, 2)), "x is no lora_a"),
    "nothing but a suffix": (put_tensors(**{".lora_a": ones(2, 2)}), "is no lora_a"),
    "suffix twice": (pair(f"{HEAD}.lora_a", ones(4, N_EMBD), ones(N_VOCAB, 4)), "is no lora_a"),
    "suffix within": (pair("x.lora_b.weight", ones(4, N_EMBD), ones(N_VOCAB, 4)), "is no lora_a"),
    "a norm": (put_tensors(**{"output_norm.weight": ones(N_EMBD)}), "is no lora_a"),
    "a magnitude": (put_tensors(**{f"{HEAD}.lora_magnitude": ones(N_VOCAB)}), "is no lora_a"),
    "name of controls": (pair("\x1b[31m\n", ones(4, 4), ones(4, 4)), "no tensor of the model"),
    "name of 63": (pair("x" * 56, ones(4, 4), ones(4, 4)), "no tensor of the model"),
    "not in the model": (pair("blk.9.attn_qkv.weight", ones(4, 4), ones(4, 4)), "blk.9"),
    "of a norm": (pair("output_norm.weight", ones(4, N_EMBD), ones(1, 4)), "is not multiplied"),
    "inputs": (pair(HEAD, ones(RANK, N_EMBD + 1), ones(N_VOCAB, RANK)), "do not fit it"),
    "outputs": (pair(HEAD, ones(RANK, N_EMBD), ones(N_VOCAB - 1, RANK)), "do not fit it"),
    "ranks": (pair(HEAD, ones(RANK, N_EMBD), ones(N_VOCAB, RANK + 1)), "do not fit it"),
    "swapped": (pair(HEAD, ones(N_VOCAB, RANK), ones(RANK, N_EMBD)), "do not fit it"),
    "turned": (pair(HEAD, ones(N_EMBD, RANK), ones(RANK, N_VOCAB)), "do not fit it"),
    "three axes": (pair(HEAD, ones(2, RANK, N_EMBD), ones(N_VOCAB, RANK)), "do not fit it"),
    "four axes": (pair(HEAD, ones(2, 1, RANK, N_EMBD), ones(2, 1, N_VOCAB, RANK)), "do not fit"),
    "one axis": (pair(HEAD, ones(N_EMBD), ones(N_VOCAB)), "do not fit it"),
    "F64": (pair(HEAD, np.ones((RANK, N_EMBD)), np.ones((N_VOCAB, RANK))), "is F64"),
    "I32": (
        pair(HEAD, np.ones((RANK, N_EMBD), np.int32), ones(N_VOCAB, RANK)),
        "is I32",
    ),
    "NaN": (with_value(A, np.nan), "holds NaN"),
    "infinity": (with_value(B, -np.inf), "holds NaN"),
    "huge numbers": (with_value(A, 3e38), None),
    "embedding": (pair(EMBEDDING, ones(N_VOCAB, RANK), ones(N_EMBD, RANK)), None),
    "embedding as others": (pair(EMBEDDING, ones(RANK, N_EMBD), ones(N_VOCAB, RANK)), "do not"),
    "embedding of two ranks": (pair(EMBEDDING, ones(N_VOCAB, 3), ones(N_EMBD, 4)), "do not"),
    "embedding that is the output": (tied, "which is the model's output"),
    "NVFP4": (nvfp4, "which is NVFP4"),
}

_A, _B = ones(N_EXPERT, RANK, N_EMBD), ones(N_EXPERT, N_FF, RANK)
EXPERT_TENSORS: dict[str, tuple[Change, str | None]] = {
    "sound experts": (lambda _: None, None),
    "experts in one": (pair(EXPERTS, _A[0], _B[0]), "do not fit it"),
    "fewer experts": (pair(EXPERTS, _A[1:], _B[1:]), "do not fit it"),
    "fewer experts in B": (pair(EXPERTS, _A, _B[1:]), "do not fit it"),
    "more experts": (pair(EXPERTS, ones(9, RANK, N_EMBD), ones(9, N_FF, RANK)), "do not fit it"),
    "experts of two ranks": (pair(EXPERTS, _A[:, 1:], _B), "do not fit it"),
}

CASES: dict[str, Case] = {
    **{name: ("phi3", *case) for name, case in (METADATA | TENSORS).items()},
    **{name: ("phimoe", *case) for name, case in EXPERT_TENSORS.items()},
}


def used(adapter_path: Path, model: pg.Model) -> None:
    """Loads an adapter and computes with it."""
    with pg.LoraAdapter(model, adapter_path) as adapter, pg.Session(model, n_ctx=32) as session:
        session.set_lora([(adapter, 0.5)])
        session.eval([1, 2, 3])
        session.eval([0, model.n_vocab - 1], logits="all")
        repr(adapter)


def ending(path: Path, model: pg.Model) -> str:
    """What using an adapter ends in."""
    try:
        used(path, model)
    except pg.FormatError as error:
        return f"FormatError {error.path == str(path)} {str(error)!r}"
    except pg.PhiggmlError as error:
        return f"{type(error).__name__} {error}"
    return "works"


def damaged(whole: bytes, folder: Path, model: pg.Model) -> None:
    """Truncations of the header, and a flip in each of its bytes."""
    path = folder / "damaged.gguf"
    header = whole.index(b"lora_b", whole.index(b"attn_qkv")) + 64
    for n in range(0, header, 3):
        path.write_bytes(whole[:n])
        print(f"cut {n}\t{ending(path, model)}", flush=True)
    for n in range(header):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ (1 << n % 8)]) + whole[n + 1 :])
        print(f"flip {n}\t{ending(path, model)}", flush=True)


def main(folder: Path) -> None:
    for name, (architecture, change, _) in CASES.items():
        adapter = sound(architecture)
        change(adapter)
        path = adapter.write(folder / "case.gguf")
        with pg.Model(adapter.model.write(folder / "model.gguf")) as model:
            print(f"{name}\t{ending(path, model)}", flush=True)
    with pg.Model(small_model("phi3").write(folder / "model.gguf")) as model:
        damaged(sound().write(folder / "case.gguf").read_bytes(), folder, model)
        path.write_bytes(gb.Layout(order=">").gguf([], []))
        print(f"big-endian\t{ending(path, model)}")
        print(f"a model\t{ending(folder / 'model.gguf', model)}")
    print("all done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
