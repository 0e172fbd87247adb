"""phiggml plan: the tables, the document, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from command_line import Out, complaint, phiggml


def test_tables(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("plan", nano_q4, "--n-ctx", "512", "--n-gpu-layers", "0") == 0
    text = capsys.readouterr().out
    for line in (
        r"^device +weights +KV +compute +total +budget$",
        r"^CPU +2\.3 +2\.0 +\d\.\d +\d+\.\d +[\d,]+\.\d$",
        r"^token_embd +CPU$",
        r"^blk\.0-3 +CPU$",
        r"^output, output_norm +CPU$",
        r"^0 of 5 layers offloaded, n_ctx 512; sizes are in MiB\.$",
    ):
        assert re.search(line, text, re.MULTILINE), line
    assert max(map(len, text.splitlines())) < 80


def test_json_is_the_plan(nano_q4: Path, capsys: Out) -> None:
    settings = ("--n-ctx", "300", "--n-seq-max", "2", "--type-k", "q8_0", "--n-batch", "32")
    assert phiggml("plan", nano_q4, *settings, "--no-offload-kv", "--no-swa-full", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    session = pg.SessionSettings(
        n_ctx=300, n_seq_max=2, type_k="q8_0", n_batch=32, offload_kv=False, swa_full=False
    )
    assert document == pg.plan_placement(nano_q4, session=session).document()
    assert document["session"]["n_ctx"] == 300 and document["fits"] is True


def test_what_does_not_fit_is_said_and_is_no_failure(nano_q4: Path, capsys: Out) -> None:
    line = ("plan", nano_q4, "--n-gpu-layers", "0", "--memory", "CPU=1MiB")
    assert phiggml(*line) == 0
    assert re.search(r"\nCPU lacks \d+\.\d MiB: .* Choose a smaller", capsys.readouterr().out)
    assert phiggml(*line, "--json") == 0
    assert json.loads(capsys.readouterr().out)["fits"] is False


def test_overrides_end_with_the_device(nano_q4: Path, capsys: Out) -> None:
    assert phiggml("plan", nano_q4, "--tensor-override", "ffn=up|ffn_.*=CPU") == 0
    assert phiggml("plan", nano_q4, "--tensor-override", "ffn=CUDA7") == 6
    assert "'CUDA7'" in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--memory", "CPU"), 2),
        (("--memory", "=8GiB"), 2),
        (("--memory", "CPU=8XB"), 3),
        (("--memory", "CUDA7=8GiB"), 6),
        (("--device", "CUDA7"), 6),
        (("--tensor-override", "ffn"), 2),
        (("--n-gpu-layers", "most"), 2),
        (("--tensor-split", "a"), 2),
        (("--tensor-split", "3,-1"), 3),
        (("--split-mode", "rows"), 2),
        (("--n-ctx", "0"), 3),
        (("--type-k", "Q4_K"), 3),
    ],
)
def test_what_is_refused(nano_q4: Path, arguments: tuple[str, ...], code: int, capsys: Out) -> None:
    try:
        found = phiggml("plan", nano_q4, *arguments)
    except SystemExit as stop:
        found = int(str(stop.code))
    assert found == code
    assert complaint(capsys)


def test_a_file_that_is_none(tmp_path: Path, capsys: Out) -> None:
    assert phiggml("plan", tmp_path / "none.gguf") == 8
    assert complaint(capsys)


def test_shares_reach_the_plan(nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    planned = pg.plan_placement

    def watched(path: str, *, tensor_split: Any, split_mode: Any, **settings: Any) -> Any:
        asked.append({"tensor_split": tensor_split, "split_mode": split_mode})
        return planned(path, **settings)

    monkeypatch.setattr(pg, "plan_placement", watched)
    assert phiggml("plan", nano_q4, "--tensor-split", "3,1.5", "--split-mode", "row") == 0
    assert phiggml("plan", nano_q4) == 0
    assert asked == [
        {"tensor_split": [3, 1.5], "split_mode": "row"},
        {"tensor_split": None, "split_mode": "layer"},
    ]
