"""phiggml recipe show: what a model would become, and saved recipes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import phiggml as pg
from command_line import NANO, Out, complaint, phiggml
from imatrix_files import Entry, sums, write_gguf
from tiny_models import KINDS, write_source


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("odd") / "odd.gguf", KINDS["odd"])


def test_what_is_shown_is_what_is_written(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    options = ("--type", "q4_k_m", "--override", r"ffn_down=Q8_0", "--embedding-type", "Q5_0")
    assert phiggml("recipe", "show", nano_f16, *options, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert phiggml("quantize", nano_f16, "-o", tmp_path / "out.gguf", *options, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    for key in ("type", "nbytes", "bits_per_weight"):
        assert shown[key] == written[key]
    assert shown["nbytes"] == (tmp_path / "out.gguf").stat().st_size
    assert shown["file_type"] == 15
    keys = ("name", "shape", "source_type", "type", "nbytes", "note")
    assert [[t[k] for k in keys] for t in shown["tensors"]] == [
        [t[k] for k in keys] for t in written["tensors"]
    ]
    rules = {t["name"]: t["rule"] for t in shown["tensors"]}
    assert rules["blk.2.ffn_down.weight"] == "override 'ffn_down'"
    assert rules["token_embd.weight"] == "embedding_type"
    assert rules["output.weight"] == "type"
    assert rules["output_norm.weight"] == ""
    assert sum(share["share"] for share in shown["types"]) == pytest.approx(1)
    assert {share["type"] for share in shown["types"]} == {t["type"] for t in shown["tensors"]}


def test_a_checkpoint_is_planned_without_its_weights(tmp_path: Path, capsys: Out) -> None:
    """Nothing is written, neither here nor beside the checkpoint."""
    before = sorted(path.name for path in NANO.parent.iterdir())
    assert phiggml("recipe", "show", NANO, "--type", "Q4_K_M") == 0
    text, bar = capsys.readouterr()
    assert bar == ""
    assert re.search(
        r"^blk\.3\.attn_qkv\.weight +768 x 256 +BF16 +Q6_K +161,280 +type$", text, re.M
    )
    assert re.search(r"^output_norm\.weight +256 +F32 +F32 +1,024$", text, re.M)
    assert re.search(r"^Q4_K +\d+ +[\d.]+ MB +[\d.]+%$", text, re.M)
    assert re.fullmatch(
        r"Q4_K_M: 27 tensors, a file of [\d,]+ bytes, [\d.]+ bits per weight", text.splitlines()[-1]
    )
    assert sorted(path.name for path in NANO.parent.iterdir()) == before


def test_fallbacks_are_shown(odd: Path, capsys: Out) -> None:
    assert phiggml("recipe", "show", odd, "--type", "Q4_K_M", "--override", "narrower=Q6_K") == 0
    lines = capsys.readouterr().out.splitlines()
    (narrow,) = [line for line in lines if line.startswith("blk.1.narrow.weight")]
    assert re.search(r"Q5_0 .* type +not Q4_K: rows of 96 do not fit its blocks$", narrow)
    (narrower,) = [line for line in lines if line.startswith("blk.1.narrower.weight")]
    assert re.search(
        r"F16 .* override 'narrower' +not Q6_K: rows of 80 do not fit its blocks$", narrower
    )
    assert "tensors whose rows do not fit the blocks of the type meant for them: 2" in lines


def test_a_saved_recipe_does_the_same_again(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    saved = tmp_path / "recipe.json"
    options = ("--type", "Q3_K_M", "--override", "attn_output=Q8_0", "--override", "z=F16")
    assert phiggml("recipe", "show", nano_f16, *options, "--save", saved, "-q") == 0
    assert capsys.readouterr() == ("", "")
    report = pg.quantize_model(
        nano_f16, tmp_path / "a.gguf", "Q3_K_M", overrides={"attn_output": "Q8_0"}
    )
    pg.quantize_model(nano_f16, tmp_path / "b.gguf", pg.Recipe.load(saved))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    # On the checkpoint that the file was made of, too.
    assert phiggml("recipe", "show", NANO, "--recipe", saved, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [t["type"] for t in shown["tensors"]] == [t.type for t in report.tensors]
    assert {t["rule"] for t in shown["tensors"]} == {"", "tensors"}
    assert shown["notes"] == ["override 'z' has no effect on any tensor"]
    assert shown["recipe"] == json.loads(saved.read_text())


def test_a_saved_recipe_is_shown_and_changed(tmp_path: Path, capsys: Out) -> None:
    saved, changed = tmp_path / "recipe.JSON", tmp_path / "changed.json"
    pg.Recipe("Q4_0", {"ffn": "Q8_0"}, tensors={"output.weight": "F16"}).save(saved)
    assert phiggml("recipe", "show", saved) == 0
    assert capsys.readouterr().out == "Q4_0\noverride 'ffn': Q8_0\noutput.weight: F16\n"
    more = ("--override", "out=Q6_K", "--override", "out=F32", "--override", "a=F16")
    assert phiggml("recipe", "show", saved, *more, "--save", changed, "--json") == 0
    expected = pg.Recipe("Q4_0", {"out": "Q6_K", "a": "F16", "ffn": "Q8_0"})
    assert json.loads(capsys.readouterr().out) == expected.document()
    assert pg.Recipe.load(changed) == expected


def test_importances_change_the_types(odd: Path, tmp_path: Path, capsys: Out) -> None:
    """And what the rules chose with them is kept where they are no longer looked at."""
    entries = [
        Entry(tensor.name, sums(tensor.shape[-1]))
        for tensor in pg.quantize_model(odd, tmp_path / "x", "F16", dry_run=True).tensors
        if len(tensor.shape) == 2
    ]
    imatrix, saved = write_gguf(tmp_path / "imatrix.gguf", entries), tmp_path / "recipe.json"
    line = ("recipe", "show", odd, "--json")
    found = []
    for options in (
        ("--type", "IQ4_XS"),
        ("--type", "IQ4_XS", "--imatrix", imatrix, "--save", saved),
        ("--recipe", saved),
    ):
        assert phiggml(*line, *options) == 0
        tensors = json.loads(capsys.readouterr().out)["tensors"]
        found.append({tensor["name"]: tensor["type"] for tensor in tensors})
    without, given, loaded = found
    assert without["blk.0.ffn_down.weight"] == "Q5_K"
    assert given["blk.0.ffn_down.weight"] == "IQ4_XS"
    assert loaded == given


def test_saving_over_a_file(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    saved = tmp_path / "recipe.json"
    line = ("recipe", "show", nano_f16, "--type", "Q8_0", "--save", saved, "-q")
    assert phiggml(*line) == 0
    assert phiggml(*line) == 8
    assert "--overwrite" in complaint(capsys)
    assert phiggml(*line, "--overwrite") == 0
    model = tmp_path / "model.gguf"
    shutil.copy(nano_f16, model)
    line = ("recipe", "show", model, "--type", "Q8_0", "--save", model, "--overwrite")
    assert phiggml(*line) == 3
    assert "it is no recipe, and is not replaced" in complaint(capsys)
    assert model.read_bytes() == nano_f16.read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        ((), 3, "to what. Give --type"),
        (("--type", "Q9"), 3, "'Q9': no model can be quantized to this type"),
        (("--type", "IQ2_XS"), 3, "needs an importance matrix"),
        (("--type", "Q8_0", "--override", "(=F16"), 3, "no regular expression"),
        (("--recipe", "nowhere.json"), 8, "nowhere.json: No such file"),
    ],
)
def test_failures(
    nano_f16: Path, options: tuple[str, ...], code: int, match: str, capsys: Out
) -> None:
    assert phiggml("recipe", "show", nano_f16, *options) == code
    assert re.search(match, complaint(capsys))


def test_failures_of_recipes(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    saved = tmp_path / "recipe.json"
    saved.write_text('{"type": "Q9"}')
    for line in ((saved,), (nano_f16, "--recipe", saved)):
        assert phiggml("recipe", "show", *line) == 4
        assert "'Q9': no model can be" in complaint(capsys)
    pg.Recipe("Q8_0").save(saved, overwrite=True)
    for option in ("--type", "--recipe", "--imatrix"):
        assert phiggml("recipe", "show", saved, option, "x") == 3
        assert f"{option} is for a model; this is a recipe" in complaint(capsys)
    assert phiggml("recipe", "show", tmp_path / "nowhere.gguf", "--type", "Q8_0") == 8
    assert phiggml("recipe", "show", tmp_path / "nowhere", "--type", "Q8_0") == 8


@pytest.mark.parametrize(
    "line", [(), ("show",), ("show", "m.gguf", "--type", "F16", "--recipe", "r.json")]
)
def test_wrong_command_lines(line: tuple[str, ...], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        phiggml("recipe", *line)
    assert caught.value.code == 2


def test_a_quantized_source(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("recipe", "show", nano_q4, "--type", "Q8_0") == 3
    assert "--allow-requantize" in complaint(capsys)
    assert phiggml("recipe", "show", nano_q4, "--type", "Q8_0", "--allow-requantize") == 0
