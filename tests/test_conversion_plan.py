"""The plan of a conversion: read in pieces, printed, and made fast for many experts."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import checkpoints
from checkpoint_kinds import KINDS, Kind, expert_shapes, write_kind
from command_line import Out, phiggml
from phiggml.conversion import ConversionPlan, PlannedTensor, convert, plan_conversion
from phiggml.errors import InputError

LAYERS, EXPERTS = 32, 16


def of(plan: ConversionPlan, name: str) -> PlannedTensor:
    (tensor,) = [tensor for tensor in plan.tensors if tensor.name == name]
    return tensor


@pytest.mark.parametrize("kind", ["phimoe", "phimoe fused"])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rows_of_experts_are_read_across_their_borders(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    half = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    write_kind(tmp_path, KINDS[kind], dtype=dtype, dtypes={half: "F32"}, shards=2)
    plan = plan_conversion(tmp_path)
    rng = np.random.default_rng(3)
    for name in ("gate", "down", "up"):
        tensor = of(plan, f"blk.0.ffn_{name}_exps.weight")
        rows = tensor.shape[0] * tensor.shape[1]
        whole: npt.NDArray[np.uint8] = plan.read(tensor, 0, rows)
        assert whole.shape[0] == rows
        spans = [tuple(sorted(rng.choice(rows + 1, 2, replace=False))) for _ in range(20)]
        for start, stop in [*spans, (0, 1), (47, 49), (31, 33), (rows - 1, rows)]:
            np.testing.assert_array_equal(plan.read(tensor, start, stop), whole[start:stop])


def many_experts() -> Kind:
    """Phi-3.5-MoE's number of layers and experts, each expert one row wide."""
    kind = KINDS["phimoe"]
    shapes = {n: s for n, s in kind.shapes.items() if ".layers." not in n}
    layer_shapes = {n: s for n, s in kind.shapes.items() if ".layers.0." in n}
    for layer in range(LAYERS):
        for name, shape in layer_shapes.items():
            if ".experts." not in name:
                own = (EXPERTS, 32) if name.endswith("gate.weight") else shape
                shapes[name.replace(".layers.0.", f".layers.{layer}.")] = own
        for name in expert_shapes(layer, fused=False):
            stem, _, part = name.partition(".experts.0.")
            for expert in range(EXPERTS if part else 0):
                shapes[f"{stem}.experts.{expert}.{part}"] = (32, 1) if "w2" in part else (1, 32)
    sizes = {"num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "intermediate_size": 1}
    return Kind({**kind.fields, **sizes}, shapes)


def test_a_plan_of_1500_experts_has_a_line_for_each_target(tmp_path: Path) -> None:
    write_kind(tmp_path, many_experts(), shards=4)
    plan = plan_conversion(tmp_path)
    assert sum(len(tensor.sources) for tensor in plan.tensors) > 1500
    lines = str(plan).splitlines()
    assert len(lines) == 1 + len(plan.tensors) + len(plan.metadata)
    assert max(map(len, lines)) < 200
    (line,) = [line for line in lines if line.startswith("blk.7.ffn_up_exps.weight ")]
    expected = (
        r"blk\.7\.ffn_up_exps\.weight +16 x 1 x 32 +BF16 +<- "
        r"model-0000\d-of-00004\.safetensors( and 1 more)?: "
        r"16 tensors model\.layers\.7\.block_sparse_moe\.experts\.\*\.w3\.weight BF16"
    )
    assert re.fullmatch(expected, line), line


def test_a_line_says_which_rows_and_how_many_files(tmp_path: Path) -> None:
    write_kind(tmp_path / "fused", KINDS["phimoe fused"])
    plan = plan_conversion(tmp_path / "fused")
    for name, rows in (("gate", "0:48"), ("up", "48:96")):
        line = str(of(plan, f"blk.1.ffn_{name}_exps.weight"))
        assert line.endswith(f"model.layers.1.mlp.experts.gate_up_proj rows {rows}, ... BF16")
    assert str(of(plan, "blk.1.ffn_down_exps.weight")).endswith("mlp.experts.down_proj BF16")
    write_kind(tmp_path / "shards", KINDS["phimoe"], shards=30)
    plan = plan_conversion(tmp_path / "shards")
    split = [t for t in plan.tensors if len({source.path for source in t.sources}) > 1]
    assert split and all(" and " in str(t) and " more: 3 tensors " in str(t) for t in split)


def test_a_dry_run_shows_tensors_metadata_and_notes(tmp_path: Path, capsys: Out) -> None:
    write_kind(tmp_path / "m", KINDS["phi4mm"])
    line = ("convert", tmp_path / "m", "-o", tmp_path / "out.gguf", "--type", "Q8_0")
    assert phiggml(*line, "--dry-run") == 0
    text = capsys.readouterr().out
    plan = plan_conversion(tmp_path / "m")
    assert text.startswith(str(plan))
    assert "blk.1.ffn_down.weight " in text and "down_proj.base_layer.weight BF16" in text
    assert "phi3.rope.dimension_count = 8" in text
    assert "\nLeft out: 16 tensors, the speech LoRA.\n" in text
    assert re.search(r"^blk\.1\.ffn_down\.weight +32 x 48 +BF16 +F16 ", text, re.MULTILINE)
    assert text.endswith("a dry run, nothing written\n")
    assert not (tmp_path / "out.gguf").exists()


def test_notes_of_a_conversion_are_told_in_every_form(tmp_path: Path, capsys: Out) -> None:
    write_kind(tmp_path / "m", KINDS["phi3v"])
    note = "Left out: 1 tensor, the vision encoder and its projector."
    line = ("convert", tmp_path / "m", "-o", tmp_path / "out.gguf", "--overwrite")
    assert phiggml(*line) == 0
    assert note in capsys.readouterr().out.splitlines()
    assert phiggml(*line, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["notes"] == [note]
    report = convert(tmp_path / "m", tmp_path / "out.gguf", overwrite=True)
    assert report.conversion.notes == (note,)


def test_a_report_travels_like_that_of_a_quantization(tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS["phimoe"])
    report = convert(tmp_path / "m", tmp_path / "out.gguf", "Q8_0")
    for other in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert other == report and hash(other) == hash(report) and str(other) == str(report)
        assert str(other.conversion) == str(report.conversion)
        with pytest.raises(TypeError, match="does not support item assignment"):
            other.conversion.metadata["general.name"] = "x"
    # The tokens of a real model would be megabytes.
    assert "tokenizer.ggml" not in repr(report)


def test_plans_can_be_compared_and_their_copies_read_nothing(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["phimoe"])
    plan = plan_conversion(tmp_path)
    assert plan == plan and plan != plan_conversion(tmp_path)
    copied = pickle.loads(pickle.dumps(plan))
    assert str(copied) == str(plan)
    with pytest.raises(InputError, match=r"model\.safetensors: is not open in a copy\. Plan again"):
        copied.read(of(copied, "token_embd.weight"), 0, 1)


def test_an_added_token_beyond_the_embedding_is_a_note_of_the_report(tmp_path: Path) -> None:
    write_kind(tmp_path / "m", KINDS["phi3v"])
    checkpoints.write_json(
        tmp_path / "m" / "added_tokens.json", {**checkpoints.MARKER_IDS, "<|far|>": 5000}
    )
    notes = plan_conversion(tmp_path / "m").notes
    assert notes[1] == (
        "Left out: added token '<|far|>' with id 5000, beyond the 288 rows of the embedding."
    )
