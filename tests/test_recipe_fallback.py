"""Rows that are no multiple of a type's blocks: what takes its place, told, and upstream's too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant import QuantType, quant_types
from phiggml.quantization import QuantizeOptions, quantize_model
from phiggml.recipe import ModelShape, Recipe, TensorFacts, plan_types
from quantization_cases import run_jobs

ROWS = (96, 80)
FILE_TYPE = dict(_core.recipe.model_types())
# What upstream has no replacement for, with blocks of 64 and 128 numbers.
WITHOUT = ["NVFP4", "Q1_0"]
TYPES = [t for t in quant_types() if t not in WITHOUT]


@dataclass(frozen=True)
class Case:
    """A model, by the length of its rows, and what is asked of it."""

    type: str
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    embedding: int = 256
    output: int | None = 256
    overrides: dict[str, str] = field(default_factory=dict)
    layers: bool = False


CASES = {
    "overrides": Case("Q8_0", overrides={rf"t\.{type}\.": type for type in TYPES}),
    "output": Case("Q4_K_M", output=96),
    "output of 80": Case("Q6_K", output=80),
    "output of experts' type": Case("MXFP4_MOE", output=96),
    "output of Q8_0": Case("Q8_0", output=96),
    "embedding": Case("Q4_K_M", embedding=96),
    "embedding of its own type": Case("TQ1_0", embedding=96),
    "tied": Case("Q5_K_M", embedding=96, output=None),
    "tied, named": Case("Q8_0", QuantizeOptions(output_type="Q5_K"), embedding=96, output=None),
    "tied, named, of 80": Case(
        "Q8_0", QuantizeOptions(output_type="IQ4_XS"), embedding=80, output=None
    ),
    "tied, pure": Case(
        "Q6_K", QuantizeOptions(pure=True, output_type="Q4_K"), embedding=96, output=None
    ),
    # A whole-model type of plain numbers has no embedding follow the output.
    "tied, plain numbers": Case("F16", QuantizeOptions(output_type="Q5_K"), output=None),
    "embedding of layers": Case(
        "Q4_K_M", QuantizeOptions(embedding_type="Q8_0"), layers=True, overrides={"layer": "Q5_1"}
    ),
    "embedding of layers, named": Case(
        "Q4_K_M", QuantizeOptions(embedding_type="Q8_0"), layers=True, overrides={"blk": "Q5_1"}
    ),
    "pure": Case("Q3_K_M", QuantizeOptions(pure=True), embedding=96, output=80),
    "override of the output": Case("Q4_K_S", output=96, overrides={"output": "Q3_K"}),
    "override of plain numbers": Case("Q8_0", overrides={r"t\.Q4_K\.": "F16"}),
}


def tensors_of(case: Case) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (40, case.embedding)}
    if case.output is not None:
        shapes["output.weight"] = (40, case.output)
    if case.layers:
        shapes["per_layer_token_embd.weight"] = (40, 256)
    shapes["blk.0.attn_norm.weight"] = (96,)
    for type in TYPES:
        shapes |= {f"blk.0.t.{type}.{n}.weight": (4, n) for n in ROWS}
    return shapes


def write_source(path: Path, case: Case) -> Path:
    writer = gguf.GGUFWriter(path, "phi3")
    for add in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
        add(1)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(40)
    random = np.random.default_rng(5)
    for name, shape in tensors_of(case).items():
        writer.add_tensor(name, random.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sources (NAME.gguf) and of what upstream made of them (NAME-upstream.gguf)."""
    folder = tmp_path_factory.mktemp("fallbacks")
    jobs = []
    for name, case in CASES.items():
        source = write_source(folder / f"{name}.gguf", case)
        job: dict[str, Any] = {"source": str(source), "file_type": FILE_TYPE[case.type]}
        job |= {"out": str(folder / f"{name}-upstream.gguf"), "pure": case.options.pure}
        job["overrides"] = [[e, QuantType(t).id] for e, t in case.overrides.items()]
        for option in ("output_type", "embedding_type"):
            named = getattr(case.options, option)
            if named is not None:
                job[option] = QuantType(named).id
        jobs.append(job)
    for type in WITHOUT:
        refused = {**jobs[0], "out": str(folder / f"{type}-upstream.gguf")}
        jobs.append({**refused, "overrides": [["blk", QuantType(type).id]]})
    run_jobs(folder, jobs)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_equal_to_upstream(name: str, upstream: Path, tmp_path: Path) -> None:
    case = CASES[name]
    out = tmp_path / "ours.gguf"
    report = quantize_model(
        upstream / f"{name}.gguf", out, case.type, overrides=case.overrides, options=case.options
    )
    assert out.read_bytes() == (upstream / f"{name}-upstream.gguf").read_bytes()
    assert not report.plan.notes
    # What the plan calls a row that fits is one, and what it calls none is none.
    for row in report.tensors:
        meant = row.note.removeprefix("not ").split(":")[0] or row.type
        fits = row.shape[-1] % QuantType(meant).block_size == 0
        assert fits == (row.note == ""), row
        assert row.shape[-1] % QuantType(row.type).block_size == 0


def test_an_override_says_what_it_could_not_be() -> None:
    case = CASES["overrides"]
    facts = [TensorFacts(name, shape, "F32") for name, shape in tensors_of(case).items()]
    plan = plan_types(ModelShape("phi3", n_layer=1), facts, "Q8_0", overrides=case.overrides)
    rows = {row.name: row for row in plan.tensors}
    for type in TYPES:
        for n in ROWS:
            row = rows[f"blk.0.t.{type}.{n}.weight"]
            assert row.rule == rf"override 't\\.{type}\\.'"
            if n % QuantType(type).block_size == 0:
                assert (row.type, row.note) == (type, "")
            else:
                assert row.note == f"not {type}: rows of {n} do not fit its blocks"
                assert row.type != type
                assert f"{type}: rows of {n}" in str(plan)
    assert rows["blk.0.t.Q4_K.96.weight"].type == "Q5_0"
    assert rows["blk.0.t.Q4_K.80.weight"].type == "F16"


def test_upstream_is_quoted_once_for_each_tensor(caplog: pytest.LogCaptureFixture) -> None:
    """Rows are asked about several times, also under another tensor's name."""
    facts = [TensorFacts(f"blk.0.{name}.weight", (4, 96), "F32") for name in "ab"]
    plan_types(ModelShape("phi3", n_layer=1), facts, "Q4_K_M", overrides={"a": "Q6_K"})
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in said if "divisible" in line] == ["blk.0.b.weight"]


@pytest.mark.parametrize("type", WITHOUT)
def test_types_without_a_replacement(type: str, upstream: Path) -> None:
    assert not (upstream / f"{type}-upstream.gguf").exists()
    facts = [TensorFacts("blk.0.a.weight", (4, 80), "F32")]
    shape = ModelShape("phi3", n_layer=1)
    with pytest.raises(InputError, match=rf"a row of 80 numbers is no multiple of {type}'s block"):
        plan_types(shape, facts, "Q8_0", overrides={"blk": type})


def plan_of_named(type: str, recipe_type: str = "Q8_0", **options: str) -> dict[str, Any]:
    facts = [
        TensorFacts("output.weight", (4, 96), type),
        TensorFacts("token_embd.weight", (4, 80), type),
    ]
    shape = ModelShape("phi3", n_layer=1)
    plan = plan_types(shape, facts, recipe_type, options=QuantizeOptions(**options))
    return {row.name: row for row in plan.tensors}


def test_named_types_of_output_and_embedding() -> None:
    """Upstream's quantizer would abort here."""
    rows = plan_of_named("F16", output_type="Q6_K", embedding_type="IQ2_XXS")
    output, embedding = rows["output.weight"], rows["token_embd.weight"]
    assert (output.type, output.rule) == ("Q8_0", "output_type")
    assert output.note == "not Q6_K: rows of 96 do not fit its blocks"
    assert (embedding.type, embedding.rule) == ("F16", "embedding_type")
    assert embedding.note == "not IQ2_XXS: rows of 80 do not fit its blocks"
    # Whole-model types of plain numbers leave no other trace of the option.
    rows = plan_of_named("F32", "F16", output_type="Q6_K", embedding_type="Q4_0")
    assert (rows["output.weight"].type, rows["token_embd.weight"].type) == ("Q8_0", "F16")


def test_fallbacks_keep_to_the_other_rules() -> None:
    shape = ModelShape("phi3", n_layer=1)
    blocks = [TensorFacts("blk.0.a.weight", (4, 96), "Q8_0")]
    with pytest.raises(InputError, match="quantized already"):
        plan_types(shape, blocks, "F16", overrides={"a": "Q4_K"})
    integers = [TensorFacts("blk.0.a.weight", (4, 96), "I32")]
    with pytest.raises(InputError, match="its type, I32, cannot be converted to Q5_0"):
        plan_types(shape, integers, "F16", overrides={"a": "Q4_K"})
    # A norm is not quantized at all.
    norm = [TensorFacts("blk.0.attn_norm.weight", (2**60 - 1,), "F32")]
    assert plan_types(shape, norm, "F16", overrides={"norm": "Q4_K"}).tensors[0].note == ""


def test_exact_types_are_taken_or_refused() -> None:
    facts = [TensorFacts("blk.0.a.weight", (4, 96), "F16")]
    recipe = Recipe("Q4_0", tensors={"blk.0.a.weight": "Q4_K"})
    with pytest.raises(InputError, match=r"blk\.0\.a\.weight: a row of 96 .*Q4_K's block of 256"):
        plan_types(ModelShape("phi3", n_layer=1), facts, recipe)
