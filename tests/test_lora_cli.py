"""phiggml convert-lora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Out, complaint, phiggml
from test_lora import DATA

FOLDER = DATA / "lora_phimoe_experts"


def test_convert_lora(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "a.gguf"
    assert phiggml("convert-lora", FOLDER, "-o", out, "--base", FOLDER) == 0
    shown = capsys.readouterr().out
    assert "4 matrices of experts without LoRA become zeros" in shown
    assert f"{out}: LoRA of 10 tensors, F16" in shown
    assert phiggml("convert-lora", FOLDER, "-o", out, "--base", FOLDER) == 8
    assert "--overwrite" in complaint(capsys)
    line = ("convert-lora", FOLDER, "-o", out, "--base", FOLDER, "--overwrite", "--type", "bf16")
    assert phiggml(*line, "-q") == 0
    assert capsys.readouterr().out == ""


def test_dry_run_and_json(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "a.gguf"
    line = ("convert-lora", FOLDER, "-o", out, "--base", FOLDER, "--dry-run")
    assert phiggml(*line) == 0
    shown = capsys.readouterr().out
    assert "rank 5" in shown and "nothing written" in shown
    assert phiggml(*line, "--json", "--type", "F32") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["architecture"] == "phimoe" and not document["written"]
    assert document["alpha"] == pytest.approx(4 * 3**0.5)
    assert len(document["tensors"]) == 20 and len(document["notes"]) == 2
    assert not out.exists()


def test_failures(tmp_path: Path, capsys: Out) -> None:
    line = ("convert-lora", FOLDER, "-o", tmp_path / "a.gguf")
    assert phiggml(*line) == 3
    assert "Pass base= (--base)" in complaint(capsys)
    assert phiggml(*line, "--base", DATA / "phi3-mini-tiny") == 4
    assert "faults" in complaint(capsys)
    assert phiggml("convert-lora", tmp_path / "none", *line[2:]) == 8
    assert "no such folder" in complaint(capsys)
    with pytest.raises(SystemExit) as error:
        phiggml(*line, "--type", "Q4_0")
    assert error.value.code == 2
