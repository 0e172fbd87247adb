"""Every member of the family to GGUF: values, metadata, and the records themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import checkpoints
import phiggml as pg
from checkpoint_kinds import KINDS, LONG, expected_tensors, write_kind
from checkpoints import HIDDEN
from phiggml.conversion import convert, plan_conversion
from phiggml.conversion.family import ARCHITECTURES
from phiggml.errors import UnsupportedError

DATA = Path(__file__).parent / "data"
REFERENCE = sorted({path.parent.name for path in DATA.glob("*/model*.safetensors")})
PLAIN = {"phi2", "slimmoe", "phi3 of wide heads", "phi3v", "phi4mm", "phi4 multimodal", "phi4v"}


def values_of(tensor: gguf.ReaderTensor) -> npt.NDArray[np.float32]:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data
    if tensor.tensor_type.name == "BF16":
        data = data.view(ml_dtypes.bfloat16)
    return data.astype(np.float32).reshape(shape)


def read_tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def own_metadata(folder: Path) -> dict[str, Any]:
    """What the architecture says, without tokens and names."""
    plan = plan_conversion(folder)
    start = f"{plan.architecture}."
    return {k.removeprefix(start): v for k, v in plan.metadata.items() if k.startswith(start)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_every_tensor_arrives_value_for_value(name: str, dtype: str, tmp_path: Path) -> None:
    values = write_kind(tmp_path / "m", KINDS[name], dtype=dtype, shards=3)
    convert(tmp_path / "m", tmp_path / "out.gguf", dtype)
    tensors = read_tensors(tmp_path / "out.gguf")
    expected = expected_tensors(values)
    factors = {t for t in tensors if t.startswith("rope_factors")}
    assert tensors.keys() - factors == expected.keys()
    assert len(factors) == (0 if name in PLAIN else 2)
    for target, value in expected.items():
        np.testing.assert_array_equal(values_of(tensors[target]), value, target)
        # The router stays F32, as in llama.cpp's converter.
        small = value.ndim == 1 or "gate_inp" in target
        assert tensors[target].tensor_type.name == ("F32" if small else dtype), target


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_checkpoints_arrive_value_for_value(name: str, tmp_path: Path) -> None:
    stored = checkpoints.read_weights(DATA / name)
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
    left_out = ("embed_tokens_extend", "vision", "mm_projector", ".lora_")
    values = {
        key: np.frombuffer(raw, dtypes[dtype]).astype(np.float32).reshape(shape)
        for key, (dtype, shape, raw) in stored.items()
        if not any(word in key for word in left_out)
    }
    convert(DATA / name, tmp_path / "out.gguf", "F32")
    tensors = read_tensors(tmp_path / "out.gguf")
    expected = expected_tensors(values)
    assert {t for t in tensors if not t.startswith("rope_factors")} == expected.keys()
    for target, value in expected.items():
        np.testing.assert_array_equal(values_of(tensors[target]), value, target)


def test_both_layouts_of_experts_give_the_same_file(tmp_path: Path) -> None:
    values = write_kind(tmp_path / "1" / "m", KINDS["phimoe"])
    write_kind(tmp_path / "2" / "m", KINDS["phimoe fused"])
    # The same numbers in the other layout.
    fused = checkpoints.read_weights(tmp_path / "2" / "m")
    expected = expected_tensors(values)
    stored = checkpoints.read_weights(tmp_path / "1" / "m")
    for name in fused:
        if name in stored:
            fused[name] = stored[name]
            continue
        layer = f"blk.{name.split('.')[2]}."
        value = {
            "weight": lambda at: expected[at + "ffn_gate_inp.weight"],
            "gate_up_proj": lambda at: np.concatenate(
                [expected[at + "ffn_gate_exps.weight"], expected[at + "ffn_up_exps.weight"]], 1
            ),
            "down_proj": lambda at: expected[at + "ffn_down_exps.weight"],
        }[name.rpartition(".")[2]](layer)
        fused[name] = ("BF16", value.shape, value.astype(ml_dtypes.bfloat16).tobytes())
    checkpoints.write_weights(tmp_path / "2" / "m", fused)
    for i in "12":
        convert(tmp_path / i / "m", tmp_path / f"{i}.gguf", "Q8_0")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_experts_of_several_dtypes_become_float32_and_lose_nothing(tmp_path: Path) -> None:
    half = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    values = write_kind(tmp_path / "m", KINDS["phimoe"], dtypes={half: "F16"})
    planned = {tensor.name: tensor for tensor in plan_conversion(tmp_path / "m").tensors}
    mixed = planned["blk.1.ffn_down_exps.weight"]
    assert mixed.type == "F32" and "BF16/F16" in str(mixed)
    assert planned["blk.1.ffn_up_exps.weight"].type == "BF16"
    convert(tmp_path / "m", tmp_path / "out.gguf", "F32")
    tensors = read_tensors(tmp_path / "out.gguf")
    for target, value in expected_tensors(values).items():
        np.testing.assert_array_equal(values_of(tensors[target]), value, target)


# Metadata -----------------------------------------------------------------------------------------

SIZES = {
    "context_length": 8192,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
MOE = {
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.sliding_window": 2047,
    "rope.dimension_count": 8,
    "rope.freq_base": 10000.0,
    "expert_count": 3,
    "expert_used_count": 2,
    "router_jitter_noise": 0.01,
}
LONG_MOE = {
    "rope.scaling.original_context_length": 128,
    "rope.scaling.attn_factor": 1.25,
    "rope.scaling.attn_factor_long": 1.5,
}
NEW_LAYOUT = {
    "rope_scaling": ...,
    "rope_theta": ...,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "longrope", **LONG},
}
# kind, changes to its config, what the metadata are
METADATA: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "phi2": (
        "phi2",
        {},
        {
            **SIZES,
            "context_length": 4096,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": 4,
        },
    ),
    "phi2 of null widths, another share and base": (
        "phi2",
        {"intermediate_size": 48, "partial_rotary_factor": 0.25, "rope_theta": 5e5},
        {
            **SIZES,
            "context_length": 4096,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": 2,
            "rope.freq_base": 5e5,
        },
    ),
    "phimoe": ("phimoe", {}, {**SIZES, **MOE, **LONG_MOE}),
    "phimoe, new layout": ("phimoe", NEW_LAYOUT, {**SIZES, **MOE, **LONG_MOE}),
    "phimoe, original inside": (
        "phimoe",
        {
            "original_max_position_embeddings": ...,
            "rope_scaling": {**LONG, "original_max_position_embeddings": 64},
        },
        {**SIZES, **MOE, **LONG_MOE, "rope.scaling.original_context_length": 64},
    ),
    # As transformers takes it, unlike a Phi-3's: what stands inside goes first.
    "phimoe, original inside and another outside": (
        "phimoe",
        {
            "original_max_position_embeddings": 256,
            "rope_scaling": {**LONG, "original_max_position_embeddings": 64},
        },
        {**SIZES, **MOE, **LONG_MOE, "rope.scaling.original_context_length": 64},
    ),
    # As transformers takes it: the short factors hold everywhere.
    "phimoe, original missing": (
        "phimoe",
        {"original_max_position_embeddings": ...},
        {**SIZES, **MOE, **LONG_MOE, "rope.scaling.original_context_length": 8192},
    ),
    "phimoe, no jitter, no window": (
        "phimoe",
        {"router_jitter_noise": 0.0, "sliding_window": None},
        {**SIZES, **MOE, **LONG_MOE, "router_jitter_noise": 0.0, "attention.sliding_window": 0},
    ),
    "phimoe, no words about rope": (
        "phimoe",
        {
            "rope_scaling": ...,
            "rope_theta": ...,
            "original_max_position_embeddings": ...,
        },
        {**SIZES, **MOE, "rope.freq_base": 1e6},
    ),
    "slimmoe": (
        "slimmoe",
        {},
        {
            **SIZES,
            **MOE,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "rope.dimension_count": 16,
        },
    ),
    "phi3 of wide heads": (
        "phi3 of wide heads",
        {},
        {
            **SIZES,
            "context_length": 4096,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 2047,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "rope.scaling.original_context_length": 4096,
            "rope.dimension_count": 16,
            "rope.freq_base": 10000.0,
        },
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name: str, tmp_path: Path) -> None:
    kind, changes, expected = METADATA[name]
    write_kind(tmp_path / "m", KINDS[kind], **changes)
    assert own_metadata(tmp_path / "m") == expected


def test_the_type_of_each_key(tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS["phimoe"])
    convert(tmp_path / "m", tmp_path / "out.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    fractions = {"epsilon", "noise", "base", "factor", "long"}
    for key in SIZES | MOE | LONG_MOE:
        wanted = "FLOAT32" if key.rpartition("_")[2] in fractions else "UINT32"
        assert [t.name for t in fields[f"phimoe.{key}"].types] == [wanted], key


def test_intermediate_size_of_phi_may_be_null(tmp_path: Path) -> None:
    kind = KINDS["phi2"]
    wide = {
        n: tuple(128 if size == 48 else size for size in shape) for n, shape in kind.shapes.items()
    }
    write_kind(tmp_path, kind.having(wide), intermediate_size=None)
    assert own_metadata(tmp_path)["feed_forward_length"] == 4 * HIDDEN


def test_tied_phi_writes_the_embedding_again(tmp_path: Path) -> None:
    kind = KINDS["phi2"].without("lm_head.weight")
    values = write_kind(tmp_path / "m", kind, tie_word_embeddings=True)
    convert(tmp_path / "m", tmp_path / "out.gguf", "F32")
    tensors = read_tensors(tmp_path / "out.gguf")
    for name in ("token_embd.weight", "output.weight"):
        np.testing.assert_array_equal(
            values_of(tensors[name]), values["model.embed_tokens.weight"], name
        )


def test_tied_experts_need_no_output_but_may_have_its_bias(tmp_path: Path) -> None:
    kind = KINDS["phimoe"].without("lm_head.weight")
    write_kind(tmp_path, kind, tie_word_embeddings=True)
    names = {tensor.name for tensor in plan_conversion(tmp_path).tensors}
    assert "output.weight" not in names and "output.bias" in names


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("phi3v", ["Left out: 1 tensor, the vision encoder and its projector."]),
        (
            "phi4mm",
            [
                "Left out: 1 tensor, the image encoder.",
                "Left out: 1 tensor, the audio encoder.",
                "Left out: 16 tensors, the vision LoRA.",
                "Left out: 16 tensors, the speech LoRA.",
            ],
        ),
        ("phi4 multimodal", ["Left out: 1 tensor, the image encoder."]),
        (
            "phi4v",
            [
                "Left out: 1 tensor, the vision tower.",
                "Left out: 2 tensors, the projector of images.",
            ],
        ),
        ("phi2", []),
    ],
)
def test_what_is_left_out_is_said(name: str, notes: list[str], tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS[name])
    assert list(plan_conversion(tmp_path / "m").notes) == notes
    report = convert(tmp_path / "m", tmp_path / "out.gguf", "F16")
    assert str(report).splitlines()[: len(notes)] == notes


def test_the_text_part_of_a_model_that_sees_is_a_plain_one(tmp_path: Path) -> None:
    write_kind(tmp_path / "1" / "m", KINDS["phi3v"])
    write_kind(
        tmp_path / "2" / "m",
        dataclasses.replace(KINDS["phi3v"], left_out={}),
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
    )
    for i in "12":
        convert(tmp_path / i / "m", tmp_path / f"{i}.gguf", "F16")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_wide_heads_survive_an_export(tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS["phi3 of wide heads"])
    convert(tmp_path / "m", tmp_path / "1.gguf", "BF16")
    pg.export_checkpoint(tmp_path / "1.gguf", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "2.gguf", "BF16")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


@pytest.mark.parametrize("name", ["phi2", "phimoe"])
def test_the_others_are_not_exported(name: str, tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS[name])
    convert(tmp_path / "m", tmp_path / "out.gguf", "BF16")
    with pytest.raises(UnsupportedError, match=rf"{name}' cannot .* 'phi3' \(Phi3ForCausalLM\)\.$"):
        pg.export_checkpoint(tmp_path / "out.gguf", tmp_path / "back")


# The records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_a_record_is_frozen_and_claims_nothing_twice(architecture: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        architecture.name = "x"
    targets = [rule.target for rule in architecture.rules]
    assert len(set(targets)) == len(targets)
    claimed: dict[tuple[str, int], int] = {}
    for rule in architecture.rules:
        for form in rule.forms:
            assert (form.name, form.part) not in claimed
            claimed[form.name, form.part] = form.parts
    for name, _ in claimed:
        parts = {part for other, part in claimed if other == name}
        assert parts == set(range(claimed[name, 0])), name


def test_names_and_model_types_lead_to_one_record_each() -> None:
    words = [word for a in ARCHITECTURES for word in (a.name, a.model_type, *a.aliases)]
    assert len(set(words)) == len(words)
    assert {"PhiForCausalLM", "PhimoeForCausalLM", "Phi4MultimodalForCausalLM"} < set(words)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_type_stands_in_for_the_class(name: str, tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS[name])
    expected = own_metadata(tmp_path)
    write_kind(tmp_path, KINDS[name], architectures=...)
    assert own_metadata(tmp_path) == expected
