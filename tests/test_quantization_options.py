"""What a recipe may say beyond a type, and odd models, against llama_model_quantize."""

from __future__ import annotations

from pathlib import Path

import pytest

from phiggml.quantization import QuantizeOptions
from phiggml.recipe import model_types
from quantization_cases import (
    NEED_IMATRIX,
    Case,
    Upstream,
    check_case,
    parameters,
    shared_folder,
)


def cases_of_models() -> list[Case]:
    """Models for which the rules decide otherwise."""
    wanted = {
        "gqa": ("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_M", "IQ4_NL", "IQ4_XS", "IQ2_M"),
        "odd": ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ2_XXS", "IQ4_XS", "TQ1_0", "Q2_0", "BF16"),
        "tied": ("Q4_K_M", "Q8_0", "IQ2_XXS", "TQ2_0", "MXFP4_MOE", "F16"),
        "seventy": ("Q3_K_S", "Q4_K_M", "Q4_K_S", "IQ3_M"),
        "seventy-qwen2": ("Q3_K_S", "Q4_K_S"),
        "few-experts": ("Q4_K_M", "Q3_K_M", "Q2_K_S", "MXFP4_MOE", "IQ2_XXS"),
    }
    found = [Case(kind, t, t in NEED_IMATRIX) for kind, types in wanted.items() for t in types]
    # Eight experts are what most rules ask for; each has importances of its own.
    found += [
        Case("experts", type, type in NEED_IMATRIX, apart=type == "IQ2_XS")
        for type in model_types()
    ]
    with_imatrix = ("Q4_0", "IQ4_NL", "IQ3_M", "Q4_K_M", "Q3_K_M", "MXFP4_MOE")
    return found + [Case("experts", type, True) for type in with_imatrix]


def cases_of_memory() -> list[Case]:
    """Long rows, all at once and a few at a time."""
    types = ("Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "Q6_K", "IQ4_XS", "IQ3_S", "IQ2_XS", "TQ1_0")
    return [
        Case("wide", type, imatrix, QuantizeOptions(max_memory=memory), label=label, apart=True)
        for type in types
        for imatrix in (False, True)
        for memory, label in ((None, ""), (150_000, "-little"))
        if imatrix or type not in NEED_IMATRIX
    ]


def cases_of_options() -> list[Case]:
    named = QuantizeOptions(output_type="Q8_0", embedding_type="Q5_1")
    found = [
        Case(kind, type, options=options, label=label)
        for kind, type in (("fused", "Q4_K_M"), ("tied", "Q4_K_M"), ("experts", "MXFP4_MOE"))
        for label, options in {
            "-pure": QuantizeOptions(pure=True),
            "-kept": QuantizeOptions(quantize_output=False),
            "-named": named,
            "-output": QuantizeOptions(output_type="Q5_K"),
            "-embedding": QuantizeOptions(embedding_type="BF16"),
            "-pure-named": QuantizeOptions(pure=True, output_type="F16", embedding_type="Q4_1"),
        }.items()
    ]
    found += [
        Case("odd", "Q4_K_M", options=QuantizeOptions(pure=True), label="-pure"),
        Case("odd", "IQ2_XXS", True, QuantizeOptions(pure=True), label="-pure"),
        Case("experts", "IQ3_XXS", True, QuantizeOptions(pure=True), label="-pure"),
        Case("gqa", "F32", options=named, label="-named"),
    ]
    return found


def cases_of_overrides() -> list[Case]:
    several = (("blk.0.ffn_down", "Q8_0"), ("ffn_down", "IQ4_XS"), ("attn_qkv", "NVFP4"))
    experts = (
        (r"blk\.[0-3]\.ffn_(gate|up)_exps", "IQ3_S"),
        (r"^blk\.7\..*exps\.weight$", "F16"),
        (r"\.ffn_down_exps\.", "Q5_0"),
        (r"^output", "Q4_K"),
    )
    return [
        Case("fused", "Q4_K_M", overrides=several, label="-several"),
        Case("fused", "Q4_K_M", True, overrides=several, label="-several"),
        Case("fused", "Q2_K_S", True, overrides=((".", "Q4_0"),), label="-all"),
        Case("experts", "Q4_K_M", True, overrides=experts, label="-experts"),
        Case("phimoe-BF16", "MXFP4_MOE", overrides=experts, label="-experts"),
        Case("llama-F32", "Q5_K_M", overrides=((r"attn_(k|v)\.", "Q8_0"),), label="-heads"),
        # Rows of which the named type's blocks do not fit get another type as by the rules.
        Case("odd", "Q4_K_M", overrides=(("narrow", "Q6_K"),), label="-narrow"),
        Case("odd", "Q8_0", overrides=(("narrow", "IQ4_XS"),), label="-narrow"),
        # Which of both wins: the named type of the embedding.
        Case(
            "fused", "Q4_0", options=QuantizeOptions(embedding_type="Q6_K", pure=True),
            overrides=(("token_embd", "Q8_0"), ("ffn_up", "Q5_K")), label="-embedding",
        ),
        # A tensor that gets the type which needs importances, by an override alone.
        Case("fused", "Q4_K_M", True, overrides=(("attn_output", "IQ2_XXS"),), label="-needing"),
    ]  # fmt: skip


CASES = [*cases_of_models(), *cases_of_memory(), *cases_of_options(), *cases_of_overrides()]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(shared_folder(tmp_path_factory, "upstream-of-options"), CASES)


@pytest.mark.parametrize("case", parameters(CASES))
def test_equal_to_upstream(case: Case, upstream: Upstream, tmp_path: Path) -> None:
    check_case(case, upstream, tmp_path)
