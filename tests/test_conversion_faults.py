"""Checkpoints of every kind with something wrong: refused, with file and tensor or field named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from checkpoint_kinds import KINDS, LONG, write_kind
from checkpoints import Stored, write_json
from phiggml.conversion import plan_conversion
from phiggml.conversion.faults import Faults
from phiggml.errors import FormatError, UnsupportedError

EXPERT = "model.layers.1.block_sparse_moe.experts."
FUSED = "model.layers.1.mlp.experts."
ROUTER = "model.layers.0.mlp.router.weight"
Tensors = dict[str, Stored]


def zeros(*shape: int, dtype: str = "BF16") -> Stored:
    count = 1
    for size in shape:
        count *= size
    return dtype, shape, bytes(count * {"I8": 1, "BF16": 2, "F64": 8}[dtype])


# Tensors ------------------------------------------------------------------------------------------


def leave(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def put(name: str, stored: Stored) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: stored})


ABSENT = [f"{EXPERT}{i}.w1.weight" for i in range(3)]
ALL_OF_LAYER = [n for n in KINDS["phimoe fused"].shapes if n.startswith(FUSED)]
# kind, what is done to its tensors, what the message says; each is the only fault
BAD_TENSORS: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "an absent expert": (
        "phimoe",
        leave(f"{EXPERT}2.w1.weight"),
        f"tensor '{EXPERT}2.w1.weight' is missing.",
    ),
    "all experts of a layer absent": (
        "phimoe",
        leave(*ABSENT),
        f"tensors '{EXPERT}*.w1.weight' of 3 experts are missing "
        f"(nor is there '{FUSED}gate_up_proj').",
    ),
    "an expert of another shape": (
        "phimoe",
        put(f"{EXPERT}0.w2.weight", zeros(32, 47)),
        f"tensor '{EXPERT}0.w2.weight' has shape (32, 47); "
        "config.json says (hidden 32, feed_forward 48).",
    ),
    "an expert of integers": (
        "phimoe",
        put(f"{EXPERT}0.w2.weight", zeros(32, 48, dtype="I8")),
        f"tensor '{EXPERT}0.w2.weight' is stored as I8; BF16, F16, F32 can be converted.",
    ),
    "an expert beyond num_local_experts": (
        "phimoe",
        put(f"{EXPERT}3.w1.weight", zeros(48, 32)),
        f"tensor '{EXPERT}3.w1.weight' has no place in PhiMoEForCausalLM of 2 layers and "
        "3 experts.",
    ),
    "an expert of a negative number": (
        "phimoe",
        put(f"{EXPERT}-1.w1.weight", zeros(48, 32)),
        f"tensor '{EXPERT}-1.w1.weight' has no place in PhiMoEForCausalLM of 2 layers and "
        "3 experts.",
    ),
    "both layouts of a tensor": (
        "phimoe",
        put(FUSED + "down_proj", zeros(3, 32, 48)),
        f"tensor '{FUSED}down_proj' is another form of '{EXPERT}0.w2.weight', which is there too.",
    ),
    "a second router": (
        "phimoe",
        put(ROUTER, zeros(3, 32)),
        f"tensor '{ROUTER}' is another form of 'model.layers.0.block_sparse_moe.gate.weight', "
        "which is there too.",
    ),
    "a router too small": (
        "phimoe fused",
        put(ROUTER, zeros(2, 32)),
        f"tensor '{ROUTER}' has shape (2, 32); config.json says (experts 3, hidden 32).",
    ),
    "fused experts without their ups": (
        "phimoe fused",
        put(FUSED + "gate_up_proj", zeros(3, 48, 32)),
        f"tensor '{FUSED}gate_up_proj' has shape (3, 48, 32); "
        "config.json says (experts 3, 2 * feed_forward 96, hidden 32).",
    ),
    "fused experts in one matrix": (
        "phimoe fused",
        put(FUSED + "gate_up_proj", zeros(288, 32)),
        f"tensor '{FUSED}gate_up_proj' has shape (288, 32); "
        "config.json says (experts 3, 2 * feed_forward 96, hidden 32).",
    ),
    "fused experts of doubles": (
        "phimoe fused",
        put(FUSED + "down_proj", zeros(3, 32, 48, dtype="F64")),
        f"tensor '{FUSED}down_proj' is stored as F64; BF16, F16, F32 can be converted.",
    ),
    "a bias in spite of attention_bias": (
        "slimmoe",
        put("model.layers.0.self_attn.o_proj.bias", zeros(32)),
        "tensor 'model.layers.0.self_attn.o_proj.bias' has no place in PhiMoEForCausalLM of "
        "2 layers.",
    ),
    "a bias absent in spite of attention_bias": (
        "phimoe",
        leave("model.layers.1.self_attn.v_proj.bias"),
        "tensor 'model.layers.1.self_attn.v_proj.bias' is missing.",
    ),
    "the output's bias absent": ("phimoe", leave("lm_head.bias"), "'lm_head.bias' is missing."),
    "a bias of phi-2 absent": (
        "phi2",
        leave("model.layers.0.mlp.fc2.bias"),
        "tensor 'model.layers.0.mlp.fc2.bias' is missing.",
    ),
    "a bias of phi-2 too long": (
        "phi2",
        put("model.layers.0.self_attn.k_proj.bias", zeros(32)),
        "tensor 'model.layers.0.self_attn.k_proj.bias' has shape (32,); "
        "config.json says (kv_heads 16).",
    ),
    "a norm of queries": (
        "phi2",
        put("model.layers.0.self_attn.q_layernorm.weight", zeros(8)),
        "tensor 'model.layers.0.self_attn.q_layernorm.weight' has no place in PhiForCausalLM of "
        "2 layers.",
    ),
    "a layer too many": (
        "phi3v",
        put("model.layers.2.input_layernorm.weight", zeros(32)),
        "tensor 'model.layers.2.input_layernorm.weight' has no place in Phi3VForCausalLM of "
        "2 layers.",
    ),
    "a projection twice": (
        "phi4mm",
        put("model.layers.0.mlp.down_proj.weight", zeros(32, 48)),
        "tensor 'model.layers.0.mlp.down_proj.base_layer.weight' is another form of "
        "'model.layers.0.mlp.down_proj.weight', which is there too.",
    ),
    "an adapter of an unknown kind": (
        "phi4mm",
        put("model.layers.0.mlp.down_proj.lora_A.smell.weight", zeros(2, 48)),
        "tensor 'model.layers.0.mlp.down_proj.lora_A.smell.weight' has no place in "
        "Phi4MMForCausalLM of 2 layers.",
    ),
    "a projection absent beside its adapters": (
        "phi4mm",
        leave("model.layers.0.mlp.down_proj.base_layer.weight"),
        "tensor 'model.layers.0.mlp.down_proj.weight' is missing "
        "(nor is there 'model.layers.0.mlp.down_proj.base_layer.weight').",
    ),
    "a vision tower in a plain text model": (
        "phi3 of wide heads",
        put("model.vision_embed_tokens.wte.weight", zeros(4, 4)),
        "tensor 'model.vision_embed_tokens.wte.weight' has no place in Phi3ForCausalLM.",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    kind, change, sentence = BAD_TENSORS[name]
    write_kind(tmp_path, KINDS[kind])
    tensors = checkpoints.read_weights(tmp_path)
    change(tensors)
    checkpoints.write_weights(tmp_path, tensors)
    with pytest.raises(FormatError) as caught:
        plan_conversion(tmp_path)
    message = str(caught.value)
    assert message.endswith(sentence), message
    assert "faults" not in message
    # What is missing is missing from the folder, not from a file.
    expected = tmp_path if "missing" in sentence else tmp_path / "model.safetensors"
    assert caught.value.path == str(expected)


def test_the_faults_of_many_experts_come_together(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["phimoe"], shards=2, num_local_experts=5)
    with pytest.raises(FormatError) as caught:
        plan_conversion(tmp_path)
    lines = str(caught.value).splitlines()
    # In each of two layers: the router's rows, and two experts of three tensors.
    assert lines[0].endswith("14 faults:")
    assert sum("gate.weight' has shape (3, 32)" in line for line in lines) == 2
    assert sum(".experts.4." in line and "is missing" in line for line in lines) == 6


def test_a_tensor_in_two_shards_is_found_in_every_kind(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["phimoe"], shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    first, second = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match=r"(?s)experts\.0\.w1\.weight' lies in model-00001-of-0"):
        plan_conversion(tmp_path)


# config.json --------------------------------------------------------------------------------------

# kind, changes, what the message says
BAD_CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "phi2: no width": ("phi2", {"hidden_size": ...}, "hidden_size is missing"),
    "phi2: another width": ("phi2", {"hidden_size": 64}, r"embed_tokens.*\(vocabulary 288, h.* 64"),
    "phi2: key heads": ("phi2", {"num_key_value_heads": 3}, "does not divide num_attention_heads"),
    "phi2: more key heads": ("phi2", {"num_key_value_heads": 4}, r"k_proj.*\(kv_heads 32, hidden"),
    "phi2: feed forward": ("phi2", {"intermediate_size": 40}, r"fc1.*\(feed_forward 40, hidden"),
    "phi2: layers": ("phi2", {"num_hidden_layers": 1}, r"layers\.1\..* of 1 layers"),
    "phi2: epsilon": ("phi2", {"layer_norm_eps": -1}, "layer_norm_eps = -1: must be a number"),
    "phi2: share": ("phi2", {"partial_rotary_factor": 0.1}, "leaves 0 of 8 elements"),
    "phi2: odd share": ("phi2", {"partial_rotary_factor": 0.4}, "leaves 3 of 8 elements"),
    "phi2: norm text": ("phi2", {"qk_layernorm": "no"}, "qk_layernorm = 'no': must be true or"),
    "phi2: rope": ("phi2", {"rope_scaling": {"type": "linear"}}, "rope_scaling.type = 'linear'"),
    "phi2: activation": ("phi2", {"hidden_act": 3}, "hidden_act = 3: must be a string"),
    "moe: experts": ("phimoe", {"num_local_experts": 2}, r"experts\.2\.w1.* of 2 layers and 2 exp"),
    "moe: one expert": ("phimoe", {"num_local_experts": 1}, "a whole number from 2 to 1024"),
    "moe: 10^9 experts": ("phimoe", {"num_local_experts": 10**9}, "num_local_experts"),
    "moe: experts text": ("phimoe", {"num_local_experts": "3"}, "num_local_experts = '3'"),
    "moe: head size": ("slimmoe", {"head_dim": 8}, r"q_proj.*\(heads 32, hidden 32\)"),
    "moe: head size odd": ("slimmoe", {"head_dim": 3}, "leaves 3 of 3 elements"),
    "moe: head size 0": ("slimmoe", {"head_dim": 0}, "head_dim = 0"),
    "moe: widths": ("phimoe", {"intermediate_size": 24}, r"w1.*\(feed_forward 24, hidden 32\)"),
    "moe: jitter": ("phimoe", {"router_jitter_noise": -0.5}, "must be a number from 0 and at"),
    "moe: jitter NaN": ("phimoe", {"router_jitter_noise": float("nan")}, "noise = nan"),
    "moe: window": ("phimoe", {"sliding_window": -1}, "sliding_window = -1"),
    "moe: bias": ("phimoe", {"attention_bias": 1}, "attention_bias = 1: must be true or false"),
    "moe: partial": ("phimoe", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
    "moe: rope by layer": (
        "phimoe",
        {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
        "rope_parameters = .* holds 'full_attention' apart; all layers rotate alike",
    ),
    "moe: yarn": ("phimoe", {"rope_scaling": {**LONG, "type": "yarn"}}, "known are longrope, su"),
    "moe: short factors": (
        "phimoe",
        {"rope_scaling": {**LONG, "short_factor": [1.0] * 8}},
        "short_factor = .* holds 8 numbers; 4 are needed",
    ),
    "moe: factors and head size": (
        "slimmoe",
        {"rope_scaling": LONG},
        "long_factor = .* holds 4 numbers; 8 are needed",
    ),
    "moe: no short_mscale": (
        "phimoe",
        {"rope_scaling": {k: v for k, v in LONG.items() if k != "short_mscale"}},
        "rope_scaling.short_mscale is missing",
    ),
    "moe: no long_mscale": (
        "phimoe",
        {"rope_scaling": {k: v for k, v in LONG.items() if k != "long_mscale"}},
        "rope_scaling.long_mscale is missing",
    ),
    "moe: mscale text": (
        "phimoe",
        {"rope_scaling": {**LONG, "long_mscale": "1"}},
        "rope_scaling.long_mscale = '1'",
    ),
    "phi3: head size": ("phi3 of wide heads", {"head_dim": 8}, r"qkv_proj.*\(qkv 64, hidden 32\)"),
    "phi3: head size null": ("phi3 of wide heads", {"head_dim": None}, r"\(qkv 64, hidden 32\)"),
    "phi3v: rows": ("phi3v", {"vocab_size": 300}, r"embed_tokens.* \(vocabulary 300, hidden 32\)"),
    "phi3v: layers": ("phi3v", {"num_hidden_layers": 3}, r"layers\.2\..*missing"),
    "phi4mm: widths": ("phi4mm", {"intermediate_size": 40}, r"base_layer.*\(gate_up 80, hidden"),
    "phi4v: epsilon": ("phi4v", {"rms_norm_eps": "x"}, "rms_norm_eps = 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_refused(name: str, tmp_path: Path) -> None:
    kind, changes, word = BAD_CONFIGS[name]
    write_kind(tmp_path, KINDS[kind], **changes)
    with pytest.raises(FormatError, match=f"(?s){word}") as caught:
        plan_conversion(tmp_path)
    assert str(tmp_path) in str(caught.value)


UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "norms of queries": ("phi2", {"qk_layernorm": True}, "qk_layernorm is true"),
    "phi2 gelu": ("phi2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'.* gelu_new only"),
    "phi2 long": (
        "phi2",
        {"rope_scaling": {**LONG, "short_factor": [1.0] * 2, "long_factor": [1.0] * 2}},
        "is LongRoPE",
    ),
    "phi2 heads": ("phi2", {"head_dim": 16}, "head_dim times num_attention_heads is not"),
    "moe gelu": ("phimoe", {"hidden_act": "gelu"}, "hidden_act is 'gelu'.* silu only"),
    "one expert a token": ("phimoe", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1; .* 2"),
    "three experts a token": ("phimoe", {"num_experts_per_tok": 3}, "num_experts_per_tok is 3"),
    "quantized experts": (
        "phimoe",
        {"quantization_config": {"quant_method": "awq"}},
        "quantized already",
    ),
    "phi-3-small": (
        "phimoe",
        {"architectures": ["Phi3SmallForCausalLM"]},
        "'Phi3SmallForCausalLM' is Phi-3-small.*no graph",
    ),
    "phi-3-small by type": (
        "phimoe",
        {"architectures": ..., "model_type": "phi3small"},
        "'phi3small' is Phi-3-small",
    ),
    "phi-4-flash": (
        "phimoe",
        {"architectures": ["Phi4FlashForCausalLM"]},
        "'Phi4FlashForCausalLM' is Phi-4-mini-flash.*no graph.* Phi3ForCausalLM",
    ),
    "phi of 2023": (
        "phi2",
        {"model_type": "phi-msft", "hidden_size": ..., "n_embd": 32},
        r"layout of Phi's first releases \(2023\)",
    ),
    "phi of 2023 by class": (
        "phi2",
        {"architectures": ["MixFormerSequentialForCausalLM"], "model_type": {}},
        r"layout of Phi's first releases \(2023\)",
    ),
    "another head": (
        "phimoe",
        {"architectures": ["PhimoeForSequenceClassification"]},
        "'PhimoeForSequenceClassification' is unknown",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_valid_but_not_done(name: str, tmp_path: Path) -> None:
    kind, changes, word = UNSUPPORTED[name]
    write_kind(tmp_path, KINDS[kind], **changes)
    with pytest.raises(UnsupportedError, match=word):
        plan_conversion(tmp_path)


@pytest.mark.parametrize("field", ["architectures", "hidden_act"])
def test_a_long_word_of_a_config_is_cut(field: str, tmp_path: Path) -> None:
    word = "x" * 100_000
    write_kind(tmp_path, KINDS["phi2"], **{field: [word] if field == "architectures" else word})
    with pytest.raises(UnsupportedError, match=r"'xxxxx+\.\.\.") as caught:
        plan_conversion(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_long_name_of_a_tensor_is_cut(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["phi2"])
    tensors = checkpoints.read_weights(tmp_path)
    tensors["x" * 100_000] = zeros(1)
    checkpoints.write_weights(tmp_path, tensors)
    with pytest.raises(FormatError, match=r"xxx\.\.\.xxx.*has no place") as caught:
        plan_conversion(tmp_path)
    assert len(str(caught.value)) < 2000


def test_faults_beyond_count_are_counted_and_not_kept() -> None:
    faults = Faults("convert")
    for i in range(1_000_000):
        faults.add(Path(f"m/{i % 3}"), f"tensor {i} is missing.")
    assert len(faults.sentences) == 100
    lines = str(faults.error(Path("m"))).splitlines()
    assert lines[0] == "convert: m: 1000000 faults:" and lines[-1] == "  ... and 999900 more."
    assert len(lines) == 102


def test_a_fault_in_the_current_folder_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kind(tmp_path, KINDS["phi2"].without("lm_head.bias"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=r"^convert: \.: \.: tensor 'lm_head.bias' is missing"):
        plan_conversion(".")


def test_an_unknown_architecture_says_which_are_known(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["phi2"], architectures=["LlamaForCausalLM"])
    with pytest.raises(UnsupportedError, match="'LlamaForCausalLM' is unknown") as caught:
        plan_conversion(tmp_path)
    for name in (
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "PhiMoEForCausalLM",
        "PhimoeForCausalLM",
        "Phi3VForCausalLM",
        "Phi4MMForCausalLM",
        "Phi4MultimodalForCausalLM",
        "Phi4ForCausalLMV",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["phi2", "phimoe", "phi4mm"])
def test_each_field_of_a_config_may_be_anything_and_ends_in_our_error_or_a_plan(
    name: str, tmp_path: Path
) -> None:
    kind = dataclasses.replace(KINDS[name], left_out={})
    write_kind(tmp_path, kind)
    fields = checkpoints.config(**kind.fields)
    odd = (None, True, -1, 0, 2**31, 10**30, 0.5, float("inf"), "x", [], [None], {}, {"type": []})
    refused = 0
    for field in fields:
        for value in odd:
            write_json(tmp_path / "config.json", {**fields, field: value})
            try:
                plan_conversion(tmp_path)
            except (FormatError, UnsupportedError):
                refused += 1
    assert refused > 5 * len(fields)
