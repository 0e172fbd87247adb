"""The plan: names of model types, upstream's rules, overrides, faults. No weights are needed."""

from __future__ import annotations

import dataclasses

import pytest

from phiggml.errors import FormatError, InputError, UnsupportedError
from phiggml.recipe import (
    ModelShape,
    Plan,
    QuantizeOptions,
    TensorFacts,
    model_type,
    model_types,
    plan_types,
)

# The names that `llama-quantize --help` of llama.cpp b11549 lists, less the aliases Q3_K, Q4_K,
# Q5_K and COPY, with the numbers of enum llama_ftype in its llama.h.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
    "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "Q1_0": 40,
    "Q2_0": 41,
}  # fmt: skip

PHI3_MINI = ModelShape("phi3", n_layer=32, n_head=32, n_head_kv=32, n_embd=3072, n_ff=8192)


def phi3_tensors(n_layer: int = 32, type: str = "BF16", tied: bool = False) -> list[TensorFacts]:
    tensors = [TensorFacts("token_embd.weight", (32064, 3072), type)]
    if not tied:
        tensors.append(TensorFacts("output.weight", (32064, 3072), type))
    for i in range(n_layer):
        tensors += [
            TensorFacts(f"blk.{i}.attn_norm.weight", (3072,), "F32"),
            TensorFacts(f"blk.{i}.attn_qkv.weight", (9216, 3072), type),
            TensorFacts(f"blk.{i}.attn_output.weight", (3072, 3072), type),
            TensorFacts(f"blk.{i}.ffn_up.weight", (16384, 3072), type),
            TensorFacts(f"blk.{i}.ffn_down.weight", (3072, 8192), type),
        ]
    return tensors


def types_of(plan: Plan) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in plan.tensors}


def test_model_types_are_those_of_llama_quantize() -> None:
    assert set(model_types()) == set(FILE_TYPES)
    assert len(model_types()) == 35
    tensors = [TensorFacts("blk.0.ffn_norm.weight", (256,), "F32")]
    for name, number in FILE_TYPES.items():
        assert plan_types(PHI3_MINI, tensors, name.lower()).file_type == number


@pytest.mark.parametrize("name", ["Q4_K", "COPY", "NVFP4", "", "Q4_K_M ", None, 15])
def test_unknown_model_type(name: object) -> None:
    with pytest.raises(InputError, match="Choose one of F32, F16"):
        model_type(name)  # type: ignore[arg-type]


def test_size_of_phi3_mini_q4_k_m() -> None:
    """Phi-3-mini-4k-instruct in Q4_K_M is published with 2.39 GB of tensors (2,393 MB file)."""
    plan = plan_types(PHI3_MINI, phi3_tensors(), "Q4_K_M")
    assert 2.38e9 < plan.nbytes < 2.40e9
    assert 4.9 < plan.bits_per_weight < 5.1


def test_q4_k_m_of_a_fused_model() -> None:
    types = types_of(plan_types(PHI3_MINI, phi3_tensors(), "Q4_K_M"))
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert types["blk.0.attn_norm.weight"] == "F32"
    # The first and last eighth, and every third layer between, get more bits.
    more = {*range(4), *range(28, 32), *range(6, 28, 3)}
    for i in range(32):
        assert types[f"blk.{i}.ffn_down.weight"] == ("Q6_K" if i in more else "Q4_K"), i


def test_order_is_by_layer_number_then_name() -> None:
    tensors = phi3_tensors(12)
    expected = sorted(
        (t.name for t in tensors),
        key=lambda n: (int(n.split(".")[1]) if n.startswith("blk.") else -1, n),
    )
    for given in (tensors, tensors[::-1]):
        shape = dataclasses.replace(PHI3_MINI, n_layer=12)
        assert [t.name for t in plan_types(shape, given, "Q8_0").tensors] == expected


def test_tied_embeddings_get_the_type_of_the_output() -> None:
    shape = dataclasses.replace(PHI3_MINI, n_layer=2)
    tied = types_of(plan_types(shape, phi3_tensors(2, tied=True), "Q4_K_M"))
    assert tied["token_embd.weight"] == "Q6_K"


def test_an_imatrix_changes_the_types() -> None:
    tensors = phi3_tensors()
    names = {t.name for t in tensors}
    without = types_of(plan_types(PHI3_MINI, tensors, "IQ4_XS"))
    given = types_of(plan_types(PHI3_MINI, tensors, "IQ4_XS", imatrix_names=names))
    assert without["blk.0.ffn_down.weight"] == "Q5_K"
    assert given["blk.0.ffn_down.weight"] == "IQ4_XS"


def test_options() -> None:
    tensors = phi3_tensors()
    types = types_of(
        plan_types(
            PHI3_MINI, tensors, "Q4_K_M",
            options=QuantizeOptions(pure=True, output_type="q8_0", embedding_type="F16"),
        )
    )  # fmt: skip
    assert types.pop("output.weight") == "Q8_0"
    assert types.pop("token_embd.weight") == "F16"
    assert set(types.values()) == {"Q4_K", "F32"}
    kept = plan_types(PHI3_MINI, tensors, "Q4_K_M", options=QuantizeOptions(quantize_output=False))
    assert types_of(kept)["output.weight"] == "BF16"


def test_overrides_take_the_first_match() -> None:
    plan = plan_types(
        PHI3_MINI, phi3_tensors(), "Q4_K_M",
        overrides={r"^blk\.0\.": "q8_0", r"ffn_down": "Q3_K", r"attn_norm": "Q8_0"},
    )  # fmt: skip
    types = types_of(plan)
    assert types["blk.0.ffn_down.weight"] == types["blk.0.attn_qkv.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] == "Q3_K"
    assert types["blk.0.attn_norm.weight"] == types["blk.1.attn_norm.weight"] == "F32"
    assert plan.notes == ("override 'attn_norm' has no effect on any tensor",)
    assert plan.notes[0] in str(plan)


def test_overrides_apply_to_types_without_blocks_too() -> None:
    plan = plan_types(PHI3_MINI, phi3_tensors(), "F16", overrides={"ffn_up": "Q8_0"})
    assert types_of(plan)["blk.3.ffn_up.weight"] == "Q8_0"
    assert types_of(plan)["blk.3.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"(": "Q8_0"}, r"override '\('.*no regular expression"),
        ({"a" * 3 + "(" * 5000: "Q8_0"}, "no regular expression"),
        ({5: "Q8_0"}, "no regular expression"),
        ({"ffn": "Q9_K"}, "'Q9_K' is no type"),
        ({"ffn": "Q4_K_M"}, "'Q4_K_M' is no type"),
        ({"ffn": "Q8_K"}, "'Q8_K' is no type"),
        ({"ffn": None}, "None is no type"),
    ],
)
def test_bad_overrides(overrides: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        plan_types(PHI3_MINI, phi3_tensors(), "Q8_0", overrides=overrides)


@pytest.mark.parametrize("option", ["allow_requantize", "keep_split", "measure_error"])
def test_flags_are_true_or_false(option: str) -> None:
    for wrong in ("no", 1, None):
        with pytest.raises(InputError, match=f"{option}: .* must be True or False"):
            QuantizeOptions(**{option: wrong})


@pytest.mark.parametrize("option", ["output_type", "embedding_type"])
def test_bad_type_options(option: str) -> None:
    with pytest.raises(InputError, match=f"{option}: 'Q4_K_M' is no type"):
        plan_types(PHI3_MINI, phi3_tensors(), "Q8_0", options=QuantizeOptions(**{option: "Q4_K_M"}))


ODD = [
    TensorFacts("blk.0.ffn_up.weight", (64, 96), "F16"),
    TensorFacts("blk.0.ffn_down.weight", (64, 80), "F16"),
    TensorFacts("output.weight", (64, 256), "F16"),
]
SMALL = ModelShape("phi3", n_layer=1, n_head=4, n_head_kv=4, n_embd=256, n_ff=256)


def test_fallbacks_are_told() -> None:
    plan = plan_types(SMALL, ODD, "Q4_K_S")
    rows = {t.name: t for t in plan.tensors}
    # Rows of 96 are whole blocks of 32, so Q4_K's replacement is Q5_0; rows of 80 fit none.
    assert rows["blk.0.ffn_up.weight"].type == "Q5_0"
    assert rows["blk.0.ffn_down.weight"].type == "F16"
    assert rows["blk.0.ffn_up.weight"].nbytes == 64 * 96 // 32 * 22
    assert rows["blk.0.ffn_up.weight"].note == "not Q4_K: rows of 96 do not fit its blocks"
    assert rows["output.weight"].note == ""
    assert "not Q4_K: rows of 96" in str(plan)


def test_a_type_without_a_fallback() -> None:
    with pytest.raises(InputError, match=r"ffn_down\.weight and 1 more: no .* fallback.*q1_0"):
        plan_types(SMALL, ODD, "Q1_0")


def test_all_faults_are_told_together() -> None:
    tensors = [
        TensorFacts("blk.0.attn_qkv.weight", (64, 256), "Q8_0"),
        TensorFacts("blk.0.ffn_up.weight", (64, 256), "F16"),
        TensorFacts("blk.0.ffn_down.weight", (64, 256), "F16"),
        TensorFacts("blk.0.odd.weight", (64, 256), "I32"),
    ]
    with pytest.raises(InputError) as caught:
        plan_types(SMALL, tensors, "IQ1_S")
    message = str(caught.value)
    assert "needs an importance matrix" in message
    assert "blk.0.attn_qkv.weight: quantized already" in message
    assert "blk.0.odd.weight: its type, I32, cannot be converted" in message
    assert "\n" not in message


def test_a_tensor_without_importances_is_named() -> None:
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight: .*needs an importance matrix"):
        plan_types(SMALL, [ODD[2], TensorFacts("blk.0.ffn_up.weight", (64, 256), "F16")], "IQ2_XS",
                   imatrix_names={"output.weight"})  # fmt: skip


def test_an_embedding_type_that_needs_importances() -> None:
    """Upstream asks none for embeddings, and its quantizer then aborts."""
    tensors = [TensorFacts("token_embd.weight", (64, 256), "F16"), ODD[2]]
    with pytest.raises(InputError, match=r"token_embd\.weight: .*needs an importance matrix"):
        plan_types(SMALL, tensors, "Q8_0", options=QuantizeOptions(embedding_type="IQ2_XXS"))


def test_allow_requantize() -> None:
    tensors = [TensorFacts("blk.0.ffn_up.weight", (64, 256), "Q8_0")]
    options = QuantizeOptions(allow_requantize=True)
    assert plan_types(SMALL, tensors, "Q4_0", options=options).tensors[0].type == "Q4_0"
    # The same type is a copy, which loses nothing.
    assert plan_types(SMALL, tensors, "Q8_0").tensors[0].source_type == "Q8_0"


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        (dataclasses.replace(SMALL, n_layer=0), UnsupportedError),
        (dataclasses.replace(SMALL, n_layer=513), UnsupportedError),
        (dataclasses.replace(SMALL, n_layer=2**32 - 1), UnsupportedError),
        (dataclasses.replace(SMALL, architecture="nonesuch"), UnsupportedError),
        (dataclasses.replace(SMALL, architecture="(unknown)"), UnsupportedError),
        (dataclasses.replace(SMALL, architecture="clip"), UnsupportedError),
        (dataclasses.replace(SMALL, architecture=""), UnsupportedError),
    ],
)
def test_models_without_rules(shape: ModelShape, error: type[Exception]) -> None:
    with pytest.raises(error, match="recipe: "):
        plan_types(shape, [ODD[2]], "Q8_0")


@pytest.mark.parametrize("n_layer", [1, 512])
def test_the_ends_of_the_range_of_layers(n_layer: int) -> None:
    shape = dataclasses.replace(SMALL, n_layer=n_layer)
    assert plan_types(shape, [ODD[2]], "Q8_0").tensors[0].type == "Q8_0"


@pytest.mark.parametrize(
    "tensor",
    [
        TensorFacts("x" * 64, (4, 256), "F16"),
        TensorFacts("a\0b", (4, 256), "F16"),
        TensorFacts("\udcff.weight", (4, 256), "F16"),
        TensorFacts("a", (), "F16"),
        TensorFacts("a", (1, 1, 1, 1, 256), "F16"),
        TensorFacts("a", (0, 256), "F16"),
        TensorFacts("a", (-1, 256), "F16"),
        TensorFacts("a", (2**40, 2**40), "F16"),
        TensorFacts("a", (2**62,), "F16"),
        TensorFacts("a", (4, 100), "Q8_0"),
        TensorFacts("a", (4, 256), "Q9_K"),
        TensorFacts("output.weight", (64, 256), "F16"),
    ],
)
def test_tensors_that_cannot_be(tensor: TensorFacts) -> None:
    with pytest.raises(InputError, match="recipe: "):
        plan_types(SMALL, [ODD[2], tensor], "Q8_0")


def test_experts_need_layer_numbers() -> None:
    shape = dataclasses.replace(SMALL, n_expert=8)
    with pytest.raises(InputError, match=r"ffn_down.*layer"):
        plan_types(shape, [TensorFacts("blk.7.ffn_down.weight", (8, 4, 256), "F16")], "Q4_K_M")
    with pytest.raises(InputError, match=r"ffn_down.*layer"):
        plan_types(shape, [TensorFacts("ffn_down.weight", (8, 4, 256), "F16")], "Q4_K_M")


def test_shape_from_metadata() -> None:
    shape = ModelShape.from_metadata(
        "phi3",
        {
            "phi3.block_count": 4,
            "phi3.attention.head_count": [8, 8, 8, 8],
            "phi3.embedding_length": 256,
            "llama.expert_count": 8,
        },
    )
    assert shape == ModelShape("phi3", n_layer=4, n_head=8, n_head_kv=8, n_embd=256)


@pytest.mark.parametrize("value", [None, "4", 4.0, True, -1, 2**32, [], [4.5], b"4"])
def test_bad_counts(value: object) -> None:
    metadata = {} if value is None else {"phi3.block_count": value}
    with pytest.raises(FormatError, match="block_count"):
        ModelShape.from_metadata("phi3", metadata)


def test_plans_are_immutable() -> None:
    plan = plan_types(SMALL, [ODD[2]], "Q8_0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.type = "F16"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.tensors[0].type = "F16"  # type: ignore[misc]
