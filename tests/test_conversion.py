"""Checkpoints to GGUF: values, metadata, the plan, and faults reported together."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import checkpoints
from checkpoints import FACTORS, HEAD_SIZE, write_json
from phiggml.conversion import convert, plan_conversion
from phiggml.conversion.phi3 import PHI3
from phiggml.errors import FormatError, InputError, UnsupportedError

DATA = Path(__file__).parent / "data"
KINDS = ("phi3-mini-tiny", "phi3.5-mini-tiny", "phi3-medium-tiny")

# The names of both sides, written out once more, apart from the code's table.
RENAMED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LONG = {"short_factor": list(FACTORS), "long_factor": [8 * f for f in FACTORS]}


def renamed(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return RENAMED[stem] + ".weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{RENAMED[rest]}.weight"


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def values_of(tensor: gguf.ReaderTensor) -> npt.NDArray[np.float32]:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    if tensor.tensor_type.name == "BF16":
        stored = tensor.data.view(ml_dtypes.bfloat16)
    else:
        stored = tensor.data
    return stored.astype(np.float32).reshape(shape)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_f32_output_holds_every_tensor_value_for_value(dtype: str, tmp_path: Path) -> None:
    values = checkpoints.write_checkpoint(tmp_path / "m", dtype=dtype, shards=2)
    report = convert(tmp_path / "m", tmp_path / "out.gguf", "F32")
    _, tensors = read_gguf(tmp_path / "out.gguf")
    assert tensors.keys() == {renamed(name) for name in values}
    for name, expected in values.items():
        np.testing.assert_array_equal(values_of(tensors[renamed(name)]), expected, name)
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_checkpoint_of_the_same_type_passes_through_bit_for_bit(
    kind: str, tmp_path: Path
) -> None:
    values = checkpoints.write_checkpoint(tmp_path / "m", dtype=kind)
    stored = checkpoints.read_weights(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "out.gguf", kind)
    _, tensors = read_gguf(tmp_path / "out.gguf")
    for name, expected in values.items():
        tensor = tensors[renamed(name)]
        if expected.ndim == 1:
            assert tensor.tensor_type.name == "F32"
            np.testing.assert_array_equal(tensor.data, expected)
        else:
            assert tensor.tensor_type.name == kind
            assert tensor.data.tobytes() == stored[name][2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_checkpoints_convert_value_for_value(kind: str, tmp_path: Path) -> None:
    convert(DATA / kind, tmp_path / "out.gguf", "F32")
    _, tensors = read_gguf(tmp_path / "out.gguf")
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
    stored = checkpoints.read_weights(DATA / kind)
    for name, (dtype, shape, raw) in stored.items():
        expected = np.frombuffer(raw, dtypes[dtype]).astype(np.float32).reshape(shape)
        np.testing.assert_array_equal(values_of(tensors[renamed(name)]), expected, name)
    factors = {name for name in tensors if name.startswith("rope_factors")}
    assert len(tensors) == len(stored) + len(factors)
    assert bool(factors) is (kind == "phi3.5-mini-tiny")


def test_rows_are_read_alone(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, dtype="BF16")
    plan = plan_conversion(tmp_path)
    for tensor in plan.tensors:
        rows = math.prod(tensor.shape[:-1])
        whole, half = plan.read(tensor, 0, rows), plan.read(tensor, rows // 2, rows)
        assert half.dtype == np.uint8 and half.flags.c_contiguous
        np.testing.assert_array_equal(half, whole[rows // 2 :])


def phi3_metadata(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in plan_conversion(folder).metadata.items() if k.startswith("phi3.")}


def test_metadata_of_a_plain_model_and_their_types(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "out.gguf", "F16")
    expected = {
        "phi3.context_length": 4096,
        "phi3.embedding_length": 32,
        "phi3.feed_forward_length": 48,
        "phi3.block_count": 2,
        "phi3.attention.head_count": 4,
        "phi3.attention.head_count_kv": 2,
        "phi3.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "phi3.attention.sliding_window": 2047,
        "phi3.rope.dimension_count": 8,
        "phi3.rope.freq_base": np.float32(10000),
        "phi3.rope.scaling.original_context_length": 4096,
    }
    metadata, _ = read_gguf(tmp_path / "out.gguf")
    assert {k: v for k, v in metadata.items() if k.startswith("phi3.")} == expected
    assert (metadata["general.architecture"], metadata["general.file_type"]) == ("phi3", 1)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    for key, value in expected.items():
        wanted = "FLOAT32" if isinstance(value, np.float32) else "UINT32"
        assert [kind.name for kind in reader.fields[key].types] == [wanted], key
    elements = {"tokens": "STRING", "scores": "FLOAT32", "token_type": "INT32"}
    for name, wanted in elements.items():
        kinds = [kind.name for kind in reader.fields[f"tokenizer.ggml.{name}"].types]
        assert kinds == ["ARRAY", wanted]


OLD: dict[str, Any] = {"rope_scaling": {"type": "longrope", **LONG}, "rope_theta": 5000.0}
# Each row: two configs that say the same.
SAME = {
    "plain": (
        {},
        {
            "rope_scaling": ...,
            "rope_theta": ...,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "plain without a word": ({}, {"rope_scaling": ..., "rope_theta": ...}),
    "long rope": (
        OLD,
        {
            "rope_scaling": ...,
            "rope_theta": ...,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 5000.0, **LONG},
        },
    ),
    "su": (OLD, {**OLD, "rope_scaling": {"type": "su", **LONG}}),
    "yarn": (OLD, {**OLD, "rope_scaling": {"type": "yarn", **LONG}}),
    "original inside": (
        {**OLD, "original_max_position_embeddings": 2048},
        {
            **OLD,
            "rope_scaling": {**OLD["rope_scaling"], "original_max_position_embeddings": 2048},
            "original_max_position_embeddings": ...,
        },
    ),
    "original missing": (OLD, {**OLD, "original_max_position_embeddings": ...}),
    "all heads are key heads": ({}, {"head_dim": HEAD_SIZE}),
    "no window": ({"sliding_window": None}, {"sliding_window": ...}),
}


@pytest.mark.parametrize("name", SAME)
def test_both_layouts_of_a_config_give_equal_metadata_and_tensors(
    name: str, tmp_path: Path
) -> None:
    plans = []
    for i, changes in enumerate(SAME[name]):
        folder = tmp_path / str(i) / "model"
        checkpoints.write_checkpoint(folder, changes={"max_position_embeddings": 8192, **changes})
        plans.append(plan_conversion(folder))
    first, second = plans
    assert json.dumps(dict(first.metadata), default=np.ndarray.tolist) == json.dumps(
        dict(second.metadata), default=np.ndarray.tolist
    )
    described = [[(t.name, t.shape, t.type, t.values) for t in plan.tensors] for plan in plans]
    assert described[0] == described[1]


def test_the_reference_configs_of_both_layouts_agree(tmp_path: Path) -> None:
    kind = DATA / "phi3.5-mini-tiny"
    for file in kind.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(kind / "config.rope_scaling.json")
    assert phi3_metadata(tmp_path) == phi3_metadata(kind)


def test_long_rope_becomes_two_factor_tensors_and_an_attention_factor(tmp_path: Path) -> None:
    changes = {**OLD, "max_position_embeddings": 131072, "sliding_window": 262144}
    checkpoints.write_checkpoint(tmp_path / "m", changes=changes)
    convert(tmp_path / "m", tmp_path / "out.gguf", "Q8_0")
    metadata, tensors = read_gguf(tmp_path / "out.gguf")
    for which in ("short", "long"):
        tensor = tensors[f"rope_factors_{which}.weight"]
        assert tensor.tensor_type.name == "F32"
        np.testing.assert_array_equal(tensor.data, np.float32(LONG[f"{which}_factor"]))
    # 131072 / 4096 = 2^5 and 4096 = 2^12.
    assert metadata["phi3.rope.scaling.attn_factor"] == np.float32(math.sqrt(1 + 5 / 12))
    assert metadata["phi3.attention.sliding_window"] == 262144


@pytest.mark.parametrize(
    ("more", "factor"), [({"attention_factor": 1.5}, 1.5), ({"factor": 64}, math.sqrt(1.5))]
)
def test_a_stated_factor_goes_before_the_ratio(
    more: dict[str, float], factor: float, tmp_path: Path
) -> None:
    scaling = {"type": "longrope", **LONG, **more}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 131072}
    checkpoints.write_checkpoint(tmp_path, changes=changes)
    assert phi3_metadata(tmp_path)["phi3.rope.scaling.attn_factor"] == pytest.approx(factor, 1e-12)


def test_partial_rotary(tmp_path: Path) -> None:
    factors = {"short_factor": list(FACTORS[:3]), "long_factor": list(FACTORS[:3])}
    scaling = {"type": "longrope", **factors}
    changes = {"rope_scaling": scaling, "partial_rotary_factor": 0.75}
    checkpoints.write_checkpoint(tmp_path, changes=changes)
    assert phi3_metadata(tmp_path)["phi3.rope.dimension_count"] == 6


def test_tied_embeddings_need_no_output_tensor(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, changes={"tie_word_embeddings": True})
    names = [tensor.name for tensor in plan_conversion(tmp_path).tensors]
    assert "output.weight" not in names
    write_json(tmp_path / "config.json", checkpoints.config(tie_word_embeddings=False))
    with pytest.raises(FormatError, match=r"'lm_head\.weight' is missing"):
        plan_conversion(tmp_path)


def test_all_faults_of_the_tensors_are_reported_together(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    tensors = checkpoints.read_weights(tmp_path)
    del tensors["model.norm.weight"]
    del tensors["model.layers.1.mlp.down_proj.weight"]
    tensors["model.layers.0.self_attn.qkv_proj.bias"] = ("F32", (2,), bytes(8))
    tensors["model.layers.0.self_attn.o_proj.weight"] = ("F32", (2, 3), bytes(24))
    tensors["model.layers.1.input_layernorm.weight"] = ("I8", (32,), bytes(32))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (4,), bytes(16))
    checkpoints.write_weights(tmp_path, tensors)
    write_json(tmp_path / "added_tokens.json", {"x": -1})
    with pytest.raises(FormatError) as caught:
        plan_conversion(tmp_path)
    message = str(caught.value)
    for fault in (
        "'model.norm.weight' is missing",
        "'model.layers.1.mlp.down_proj.weight' is missing",
        "'model.layers.0.self_attn.qkv_proj.bias' has no place",
        "'model.layers.0.self_attn.o_proj.weight' has shape (2, 3); "
        "config.json says (hidden 32, heads 32)",
        "'model.layers.1.input_layernorm.weight' is stored as I8",
        "its id -1 must be >= 0",
    ):
        assert fault in message
    assert "6 faults" in message and "inv_freq" not in message
    assert caught.value.path == str(tmp_path)


def test_a_broken_tokenizer_does_not_hide_the_faults_of_tensors(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    tensors = checkpoints.read_weights(tmp_path)
    del tensors["model.norm.weight"]
    checkpoints.write_weights(tmp_path, tensors)
    (tmp_path / "tokenizer.model").write_bytes(b"PK")
    with pytest.raises(FormatError, match=r"(?s)2 faults.*'model\.norm.*sentencepiece model is"):
        plan_conversion(tmp_path)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no size": ({"hidden_size": ...}, "hidden_size is missing"),
    "size null": ({"hidden_size": None}, "hidden_size is missing"),
    "size text": ({"hidden_size": "32"}, "hidden_size = '32'"),
    "size true": ({"hidden_size": True}, "hidden_size = True"),
    "size float": ({"hidden_size": 32.0}, "hidden_size = 32.0"),
    "size 0": ({"hidden_size": 0}, "hidden_size = 0"),
    "size 2^31": ({"intermediate_size": 2**31}, "intermediate_size"),
    "layers 513": ({"num_hidden_layers": 513}, "from 1 to 512"),
    "layers 0": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "vocabulary 10^12": ({"vocab_size": 10**12}, "vocab_size"),
    "vocabulary larger than the embedding": ({"vocab_size": 4_000_000}, "vocabulary 4000000"),
    "heads do not divide": ({"num_attention_heads": 5}, "does not divide hidden_size"),
    "more key heads": ({"num_key_value_heads": 8}, "does not divide num_attention_heads"),
    "epsilon NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    "epsilon 0": ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
    "theta inf": ({"rope_theta": float("inf")}, "rope_theta = inf"),
    "theta huge": ({"rope_theta": 10**400}, "rope_theta"),
    "window negative": ({"sliding_window": -1}, "sliding_window"),
    "tied text": ({"tie_word_embeddings": "no"}, "must be true or false"),
    "rope list": ({"rope_scaling": [1]}, "rope_scaling"),
    "rope unknown": ({"rope_scaling": {"type": "llama3"}}, "rope_scaling.type = 'llama3'"),
    "rope type number": ({"rope_scaling": {"type": 3}}, "rope_scaling.type = 3"),
    "no factors": ({"rope_scaling": {"type": "su"}}, "rope_scaling.long_factor is missing"),
    "short factors too short": (
        {"rope_scaling": {"type": "su", **LONG, "short_factor": [1.0]}},
        "short_factor = .* holds 1 numbers; 4 are needed",
    ),
    "factors zero": (
        {"rope_scaling": {"type": "su", **LONG, "long_factor": [0.0] * 4}},
        "long_factor .* above 0",
    ),
    "factors text": (
        {"rope_scaling": {"type": "su", **LONG, "long_factor": ["1"] * 4}},
        "long_factor",
    ),
    "original 1": ({"original_max_position_embeddings": 1}, "original_max_position_embeddings"),
    "rotary 2": ({"partial_rotary_factor": 2.0}, "partial_rotary_factor = 2.0"),
    "rotary odd": ({"partial_rotary_factor": 0.4}, "leaves 3 of 8"),
    "eos beyond": ({"eos_token_id": [10**6]}, "no token's id"),
    "architectures text": ({"architectures": "Phi3ForCausalLM"}, "architectures must be a list"),
    "no architecture": ({"architectures": ..., "model_type": ...}, "neither"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    changes, word = BAD_CONFIGS[name]
    write_json(tmp_path / "config.json", checkpoints.config(**changes))
    with pytest.raises(FormatError, match=word):
        plan_conversion(tmp_path)


def test_all_faults_of_a_config_are_reported_together(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    changes = {"hidden_size": -1, "vocab_size": "x", "rope_scaling": {"type": "su"}}
    write_json(tmp_path / "config.json", checkpoints.config(**changes))
    with pytest.raises(FormatError, match="4 faults") as caught:
        plan_conversion(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["Phi5ForCausalLM"]}, "'Phi5ForCausalLM' is unknown.*Phi3ForCausalLM"),
        ({"architectures": ..., "model_type": "phi5"}, "'phi5' is unknown"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_what_is_valid_but_not_done(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", checkpoints.config(**changes))
    with pytest.raises(UnsupportedError, match=word):
        plan_conversion(tmp_path)


def test_model_type_stands_in_for_architectures(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, changes={"architectures": ...})
    assert plan_conversion(tmp_path).architecture == "phi3"


def test_a_plan_is_immutable_and_prints_every_tensor_and_key(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, changes=OLD)
    plan = plan_conversion(tmp_path)
    text = str(plan)
    for tensor in plan.tensors:
        assert tensor.name in text
    for key in plan.metadata:
        assert key in text
    assert max(map(len, text.splitlines())) < 200
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.architecture = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.metadata["x"] = 1  # type: ignore[index]


def test_an_architecture_is_data() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PHI3.name = "x"  # type: ignore[misc]
    sources = [rule.source for rule in PHI3.rules]
    targets = [rule.target for rule in PHI3.rules]
    assert len(set(sources)) == len(sources) == len(set(targets)) == len(targets)
    assert {renamed(s.format(layer=7)) for s in sources} == {t.format(layer=7) for t in targets}


def test_a_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    checkpoints.write_checkpoint(folder)
    before = sorted(tmp_path.rglob("*"))
    report = convert(str(folder), tmp_path / "out.gguf", "Q8_0", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert "blk.1.ffn_down.weight" in str(report)
    written = convert(folder, tmp_path / "out.gguf", "q8_0")
    assert written.nbytes == report.nbytes


def test_an_existing_file_and_the_checkpoints_own_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    checkpoints.write_checkpoint(folder)
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        convert(folder, out)
    assert out.read_text() == "mine"
    convert(folder, out, overwrite=True)
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(InputError, match="the source itself"):
        convert(folder, weights, overwrite=True)
    assert weights.read_bytes() == before


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "m", tmp_path / "out.gguf", progress=interrupt)
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_is_told(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m")
    seen: list[tuple[int, int]] = []
    convert(
        tmp_path / "m",
        tmp_path / "out.gguf",
        "F16",
        progress=lambda event: seen.append((event.done, event.total)),
    )
    assert seen and seen[-1][0] == seen[-1][1] and seen == sorted(seen)
