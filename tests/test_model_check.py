"""The check in front of llama.cpp: what it says, what it lets pass, what it takes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from hostile_loads import drop, put, put_tensor, together
from phiggml.model_check import Purpose, check_model
from small_models import ARCHITECTURES, N_LAYER, N_VOCAB, Change, SmallModel, small_model


def checked(path: Path, purpose: Purpose = "load") -> None:
    with pg.GGUFFile(path) as file:
        check_model(file, purpose=purpose)


def faults(path: Path, purpose: Purpose = "load") -> str:
    with pytest.raises(pg.FormatError) as caught:
        checked(path, purpose)
    assert caught.value.path == str(path)
    return str(caught.value)


def test_all_faults_are_told_together(tmp_path: Path) -> None:
    model = small_model("phi3")
    together(
        put(".context_length", 0),
        put(".attention.head_count_kv", 3),
        put(".rope.scaling.type", "round"),
        put("tokenizer.ggml.bos_token_id", N_VOCAB),
        put("tokenizer.ggml.scores", [0.0], "FLOAT32"),
        put_tensor("output_norm.weight", np.ones(64, np.float16)),
    )(model)
    lines = faults(path := model.write(tmp_path / "model.gguf")).splitlines()
    assert lines[0] == f"load: {path}: 6 faults:"
    for key in (
        "phi3.context_length is 0",
        "phi3.attention.head_count_kv is 3",
        "phi3.rope.scaling.type is 'round'",
        "tokenizer.ggml.bos_token_id is 288",
        "tokenizer.ggml.scores has 1 entries for 288 tokens",
        "output_norm.weight is F16",
    ):
        assert sum(key in line for line in lines[1:]) == 1, key
    remedies = ("Convert the checkpoint anew.", "with phiggml gguf set or unset.")
    assert all(line.endswith(remedies) for line in lines[1:])


def test_one_fault_is_a_sentence(tmp_path: Path) -> None:
    model = small_model("llama")
    put(".block_count", 513)(model)
    assert faults(model.write(tmp_path / "model.gguf")) == (
        "load: llama.block_count is 513: it must be 1 to 512. Convert the checkpoint anew."
    )


def test_thousands_of_faults_are_counted(tmp_path: Path) -> None:
    model = small_model("phi3")
    put(".block_count", 512)(model)
    lines = faults(model.write(tmp_path / "model.gguf")).splitlines()
    assert len(lines) == 102 and lines[0].endswith(f"{(512 - N_LAYER) * 6} faults:")
    assert lines[-1] == f"  ... and {(512 - N_LAYER) * 6 - 100} more."


def bare(architecture: str, **keys: object) -> SmallModel:
    """A model of an architecture whose tensors are not known to the check."""
    model = SmallModel(architecture, {"general.architecture": architecture})
    known = small_model("phi3").metadata
    model.metadata |= {key: value for key, value in known.items() if key.startswith("tokenizer.")}
    for key, value in {"context_length": 64, "embedding_length": 64, "block_count": 2}.items():
        put(f".{key}", value)(model)
    for key, value in keys.items():
        put(f".{key.replace('__', '.')}", value, "UINT32")(model)
    model.tensors["token_embd.weight"] = np.zeros((N_VOCAB, 64), np.float32)
    return model


@pytest.mark.parametrize(
    "model",
    [
        # No attention; attention in some layers; layers without any; heads that do not divide.
        bare("mamba", attention__head_count=0, feed_forward_length=0),
        bare("jamba", attention__head_count=8, attention__head_count_kv=[0, 2]),
        bare("deci", attention__head_count=[8, 0], attention__head_count_kv=[2, 0]),
        bare("openelm", attention__head_count=[12, 16], attention__key_length=5),
        bare("step35", attention__head_count=[64, 96], attention__head_count_kv=8),
        bare("deepseek2", expert_count=64, expert_used_count=6, expert_group_count=8,
             expert_group_used_count=3),
        bare("hunyuan-dense", expert_count=1, expert_used_count=8),
        bare("gpt-oss", expert_count=32, expert_used_count=[4, 0]),
    ],
    ids=lambda model: model.architecture,
)  # fmt: skip
def test_other_architectures_pass(tmp_path: Path, model: SmallModel) -> None:
    checked(model.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(".block_count", 0), "mamba.block_count"),
        (put(".expert_used_count", 2), "mamba.expert_used_count"),
        (put(".attention.head_count_kv", [8, 3], "UINT32"), "mamba.attention.head_count_kv is 3"),
        (put(".attention.layer_norm_epsilon", -1.0, "FLOAT32"), "layer_norm_epsilon is -1.0"),
        (put_tensor("blk.0.ssm_d", np.ones(8, np.float16)), "blk.0.ssm_d is F16"),
        (put_tensor("token_embd.weight", np.zeros((9, 64), np.float32)), "9 rows for a vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_architectures_are_checked(tmp_path: Path, change: Change, expected: str) -> None:
    model = bare("mamba", attention__head_count=8)
    change(model)
    assert expected in faults(model.write(tmp_path / "model.gguf"))


def test_tensors_that_choose_experts(tmp_path: Path) -> None:
    model = bare("deepseek4", expert_count=4, expert_used_count=2)
    model.tensors["blk.0.ffn_gate_tid2eid.weight"] = np.zeros((N_VOCAB, 2), np.int32)
    checked(path := model.write(tmp_path / "model.gguf"))
    model.tensors["blk.0.ffn_gate_tid2eid.weight"][7, 1] = 4
    model.write(path)
    assert "blk.0.ffn_gate_tid2eid.weight chooses expert 4" in faults(path)


def test_quantizing_takes_what_loading_refuses(tmp_path: Path) -> None:
    model = small_model("phi3")
    together(put(".rope.dimension_count", 7), drop("blk.1.ffn_norm.weight"))(model)
    checked(path := model.write(tmp_path / "model.gguf"), "quantize")
    assert pg.quantize_model(path, tmp_path / "out.gguf", "Q8_0").nbytes > 0
    put("general.type", "imatrix")(model)
    assert "an importance matrix, no model" in faults(model.write(path), "quantize")
    with pytest.raises(pg.FormatError, match="an importance matrix, no model"):
        pg.quantize_model(path, tmp_path / "none.gguf", "Q8_0")


@pytest.mark.parametrize("order", ["<", ">"])
def test_containers_that_llama_cpp_does_not_read(tmp_path: Path, order: str) -> None:
    path = tmp_path / "model.gguf"
    layout = gb.Layout(1 if order == "<" else 3, order)
    path.write_bytes(
        layout.gguf([layout.pair("general.architecture", gb.STRING, layout.string("x"))])
    )
    with pytest.raises(pg.UnsupportedError, match="version 1" if order == "<" else "big-endian"):
        pg.Model(path)


def test_a_token_of_two_gibibytes(tmp_path: Path) -> None:
    """Nothing of it is read, let alone decoded."""
    path = tmp_path / "model.gguf"
    pairs = [gb.pair("general.architecture", gb.STRING, gb.string("phi3"))]
    key = gb.string("tokenizer.ggml.tokens") + struct.pack("<IIQ", gb.ARRAY, gb.STRING, 1)
    head = gb.header(1, 2) + b"".join(pairs) + key + struct.pack("<Q", 2**31)
    described = gb.tensor("token_embd.weight", [4], gb.F32)
    with path.open("wb") as file:
        file.write(head)
        file.seek(2**31, 1)
        file.write(described + bytes(-(len(head) + 2**31 + len(described)) % 32) + bytes(16))
    with pytest.raises(pg.FormatError, match="header") as caught:
        pg.Model(path)
    assert caught.value.path == str(path)


def test_the_numbers_of_parts(tmp_path: Path) -> None:
    model = small_model("phi3")
    first, second = model.write_split(tmp_path)
    checked(second)
    part = SmallModel("phi3", {}, dict(list(model.tensors.items())[len(model.tensors) // 2 :]))
    part.metadata = {"split.no": np.uint32(1), "split.count": np.uint16(2)}
    part.write(second)
    assert f"split.no must be UINT16 in {second}" in faults(first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_architectures_pass(tmp_path: Path, architecture: str) -> None:
    checked(small_model(architecture).write(tmp_path / "model.gguf"))
