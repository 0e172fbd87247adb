"""Broken and hostile adapters: each fault is a FormatError that names file and tensor."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from checkpoints import Stored, read_weights, safetensors_bytes, with_header
from phiggml.conversion.lora import convert_lora, plan_lora
from test_lora import add, change_base, change_config, copied, rename

_LAYER = "base_model.model.model.layers.0."
_DOWN = _LAYER + "mlp.down_proj.lora_{}.weight"
_WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, r"r = 0: must be a whole number from 1"),
        ({"r": 2**31}, r"r = 2147483648: must be"),
        ({"r": "8"}, r"r = '8'"),
        ({"r": 8.0}, r"r = 8\.0"),
        ({"r": True}, r"r = True"),
        ({"lora_alpha": float("nan")}, r"lora_alpha = nan"),
        ({"lora_alpha": float("inf")}, r"lora_alpha = inf"),
        ({"lora_alpha": 0}, r"lora_alpha = 0: must be a number above 0"),
        ({"lora_alpha": -1}, r"lora_alpha = -1"),
        ({"lora_alpha": [1]}, r"lora_alpha = \[1\]"),
        ({"use_rslora": 1}, r"use_rslora = 1: must be true or false"),
        ({"peft_type": 3}, r"peft_type = 3: must be a string"),
        ({"base_model_name_or_path": ["x"]}, r"base_model_name_or_path"),
        ({"rank_pattern": [1]}, r"rank_pattern = \[1\]: must be an object"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj = 0"),
        ({"alpha_pattern": {"q_proj": None}}, r"alpha_pattern\.q_proj is missing"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj = 'x'"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern\.\( = 4: is no expression"),
        ({"rank_pattern": {"x" * 300: 4}}, r"is no expression"),
    ],
)
def test_config_of_wrong_types(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_config(folder, **changes)
    with pytest.raises(pg.FormatError, match=message) as error:
        plan_lora(folder, base=folder)
    assert error.value.path == str(folder / "adapter_config.json")


@pytest.mark.parametrize(
    "expression",
    [
        *("(a+)+", "(.|.)*x", "(.*)*x", ".*.*.*x", ".?" * 60 + "x", "((a|b){2,}){2,}x", "(a|aa)+x"),
        "".join(f"(|){c}" for c in r"model.layers.0.self_attn.qkv_pro") + "x",
        "(?x:([a-z._0-9]+) +)x",
        "([a-z._0-9]+)(?#)+x",
        r"(|[)]|\)|)" * 20 + "x",
    ],
)
def test_expressions_that_never_end(expression: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_config(folder, alpha_pattern={expression: 4})
    started = time.process_time()
    with pytest.raises(pg.FormatError, match="bounded time"):
        plan_lora(folder, base=folder)
    assert time.process_time() - started < 1


def test_allowed_expressions_are_quick(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_config(folder, alpha_pattern={f".*.*a?a?a?a?[^z]x{i}": 4 for i in range(100)})
    started = time.process_time()
    plan_lora(folder, base=folder)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("text", ["", "[]", "null", '{"r": 1', "\xff", "[" * 100_000])
def test_config_that_is_no_object(text: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(pg.FormatError, match=r"adapter_config\.json"):
        plan_lora(folder, base=folder)


def stored(shape: tuple[int, ...], dtype: str = "F32") -> Stored:
    size = {"F32": 4, "F64": 8, "I8": 1}[dtype]
    return dtype, shape, bytes(size * int(np.prod(shape)))


def replaced(name: str, tensor: Stored) -> Callable[[Path], None]:
    return lambda folder: add(folder, name, tensor)


def without(part: str) -> Callable[[Path], None]:
    return lambda folder: rename(folder, lambda name: None if part in name else name)


def moved(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: rename(folder, lambda name: name.replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(_DOWN.format("A"), stored((8, 23))), r"down_proj\.lora_A.*\(8, 23\).*inputs 24"),
        (replaced(_DOWN.format("A"), stored((4, 24))), r"down_proj\.lora_A.*\(4, 24\).*rank 8"),
        (replaced(_DOWN.format("B"), stored((16, 4))), r"down_proj\.lora_B.*\(16, 4\).*rank 8"),
        (replaced(_DOWN.format("B"), stored((8,))), r"down_proj\.lora_B.*\(8,\)"),
        (replaced(_DOWN.format("A"), stored((0, 24))), r"down_proj\.lora_A.*\(0, 24\)"),
        (replaced(_DOWN.format("A"), stored((1, 8, 24))), r"down_proj\.lora_A.*\(1, 8, 24\)"),
        (replaced(_DOWN.format("A"), stored((8, 24), "F64")), r"down_proj\.lora_A.*stored as F64"),
        (replaced(_DOWN.format("A"), stored((8, 24), "I8")), r"down_proj\.lora_A.*stored as I8"),
        (without("0.mlp.down_proj.lora_B"), r"down_proj\.lora_A.*the B to it is missing"),
        (without("0.mlp.down_proj.lora_A"), r"down_proj\.lora_B.*the A to it is missing"),
        (without("lora"), "holds no LoRA matrix"),
        (moved("layers.1.", "layers.7."), r"layers\.7.*has no module.*2 layers"),
        (moved("down_proj", "left_proj"), r"left_proj.*has no module"),
        (moved("mlp.down_proj", "input_layernorm"), r"input_layernorm.*is no matrix"),
        (moved("1.mlp.down_proj", "1.self_attn.qkv_proj.base_layer"), r"base_layer.*has no module"),
        (replaced(_LAYER + "mlp.down_proj.lora_magnitude_vector", stored((16,))), "magnitude"),
        (replaced(_DOWN.format("C"), stored((16, 8))), r"lora_C.*no LoRA matrix that is known"),
        (replaced(_LAYER[17:] + "mlp.down_proj.lora_A.weight", stored((8, 24))), "has a A already"),
        (
            replaced("base_model.model.model.embed_tokens.lora_A.weight", stored((8, 16))),
            r"embed_tokens\.lora_A.*the B to it is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = copied(tmp_path)
    change(folder)
    with pytest.raises(pg.FormatError, match=message) as error:
        plan_lora(folder, base=folder)
    assert error.value.path == str(folder / _WEIGHTS)


def test_kinds_of_layers_are_told_apart(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    add(folder, _LAYER + "self_attn.o_proj.lora_embedding_A", stored((8, 16)))
    add(folder, _LAYER + "self_attn.o_proj.lora_embedding_B", stored((16, 8)))
    with pytest.raises(pg.FormatError, match=r"o_proj.*is of an embedding, which"):
        plan_lora(folder, base=folder)
    folder = copied(tmp_path, "phi3")
    rename(folder, lambda name: name.replace("embed_tokens.lora_", "lm_head_.lora_"))
    rename(folder, lambda name: name.replace("lm_head_.lora_embedding", "embed_tokens.lora"))
    rename(folder, lambda name: f"{name}.weight" if name[-1] in "AB" else name)
    with pytest.raises(pg.FormatError, match=r"embed_tokens.*is of a linear layer, which"):
        plan_lora(folder, base=folder)


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    moved("layers.1.self_attn", "layers.9.self_attn")(folder)
    replaced(_DOWN.format("A"), stored((3, 24)))(folder)
    without("1.mlp.down_proj.lora_A")(folder)
    with pytest.raises(pg.FormatError, match="3 faults") as error:
        plan_lora(folder, base=folder)
    for part in ("layers.9", "(3, 24)", "layers.1.mlp.down_proj.lora_B"):
        assert part in str(error.value)


def test_experts_that_do_not_fit(tmp_path: Path) -> None:
    folder = copied(tmp_path, "phimoe")
    name = _LAYER + "mlp.experts.lora_A.weight"
    add(folder, name, stored((4, 24)))
    with pytest.raises(pg.FormatError, match=r"experts\.lora_A.*\(4, 24\).*fit neither.*3 experts"):
        plan_lora(folder, base=folder)


def test_one_matrix_twice(tmp_path: Path) -> None:
    """transformers 4 and 5 have two names for the router."""
    folder = copied(tmp_path, "phimoe")
    for which in "AB":
        router = _LAYER + f"mlp.router.lora_{which}.weight"
        released = router.replace("mlp.router", "block_sparse_moe.gate")
        add(folder, released, read_weights(folder)[router])
    with pytest.raises(pg.FormatError, match=r"changes what .* changes too"):
        plan_lora(folder, base=folder)


def test_parameters_of_experts_that_older_peft_turned_round(tmp_path: Path) -> None:
    """Before 0.19 it took a parameter's rows for inputs: its change is the transpose."""
    folder = copied(tmp_path, "phimoe")
    wanted = plan_lora(folder, base=folder)
    rng = np.random.default_rng(5)
    a = rng.standard_normal((3 * 2, 48)).astype("<f4")
    b = rng.standard_normal((16, 2 * 3)).astype("<f4")
    stem = _LAYER + "mlp.experts.base_layer.lora_"
    add(folder, stem + "A.weight", ("F32", a.shape, a.tobytes()))
    add(folder, stem + "B.weight", ("F32", b.shape, b.tobytes()))
    plan = plan_lora(folder, base=folder)
    assert [pair.target for pair in plan.pairs] == [pair.target for pair in wanted.pairs]
    # As PEFT 0.18 computed it: "o r e, e r i -> e i o".
    change = np.einsum("ore,eri->eio", b.reshape(16, 2, 3), a.reshape(3, 2, 48))
    for target, rows in (("ffn_gate_exps", slice(0, 24)), ("ffn_up_exps", slice(24, 48))):
        pair = next(p for p in plan.pairs if p.target == f"blk.0.{target}.weight")
        left, right = plan.read(pair)[::-1]
        found = left @ right * plan.alpha / pair.rank
        np.testing.assert_allclose(found, change[:, rows] * 5 / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    values = np.zeros((8, 24), "<f4")
    values[3, 5] = value
    add(folder, _DOWN.format("A"), ("F32", (8, 24), values.tobytes()))
    with pytest.raises(pg.FormatError, match=r"layers\.0\.mlp\.down_proj\.lora_A.*NaN"):
        convert_lora(folder, tmp_path / "a.gguf", base=folder)
    assert not (tmp_path / "a.gguf").exists()


def test_values_beyond_the_type(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    values = np.full((8, 24), 1e30, "<f4")
    add(folder, _DOWN.format("A"), ("F32", (8, 24), values.tobytes()))
    with pytest.raises(pg.InputError, match=r"blk\.0\.ffn_down\.weight\.lora_a.*F16"):
        convert_lora(folder, tmp_path / "a.gguf", base=folder)
    convert_lora(folder, tmp_path / "a.gguf", "BF16", base=folder)
    change_config(folder, alpha_pattern={"layers.0.mlp.down_proj": 1e-30, "qkv_proj": 1e9})
    convert_lora(folder, tmp_path / "b.gguf", "F32", base=folder)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    whole = (folder / _WEIGHTS).read_bytes()
    (header_length,) = struct.unpack_from("<Q", whole)
    entry = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}
    broken = [
        b"",
        whole[:7],
        whole[: 8 + header_length // 2],
        whole[:-1],
        whole + b"x",
        struct.pack("<Q", 1 << 63) + whole[8:],
        with_header(b"{}"),
        with_header(json.dumps({_DOWN.format("A"): entry}).encode(), bytes(4)),
        safetensors_bytes({"\ud800": stored((1, 1))}),
    ]
    for content in broken:
        (folder / _WEIGHTS).write_bytes(content)
        with pytest.raises(pg.FormatError, match=r"adapter_model\.safetensors"):
            plan_lora(folder, base=folder)


def test_modules_of_a_part_that_is_left_out(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_base(folder, architectures=["Phi3VForCausalLM"], model_type="phi3_v")
    vision = _LAYER.replace("layers.0.", "vision_embed_tokens.img_projection.0.lora_{}.weight")
    for which in "AB":
        add(folder, vision.format(which), stored((8, 8)))
    assert plan_lora(folder, base=folder).notes == (
        "Left out: 1 tensors, the vision encoder and its projector.",
    )
    rename(folder, lambda name: name if "vision" in name else None)
    with pytest.raises(pg.FormatError, match="no LoRA matrix of the text part of Phi3V"):
        plan_lora(folder, base=folder)


def test_faults_of_the_base(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_base(folder, hidden_size=0, num_hidden_layers="two")
    with pytest.raises(pg.FormatError, match=r"config\.json") as error:
        plan_lora(folder, base=folder)
    assert "hidden_size" in str(error.value) and "num_hidden_layers" in str(error.value)
    (folder / "config.json").write_text("[]", "utf-8")
    with pytest.raises(pg.FormatError, match=r"config\.json"):
        plan_lora(folder, base=folder)
