"""What phi3-nano can do, and what quantization takes from it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import phiggml as pg

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "examples" / "phi3-nano"


def share_of_right_answers(path: Path, questions: list[dict[str, str]]) -> float:
    right = 0
    with pg.Session(path, n_ctx=512) as session:
        for case in questions:
            answer = session.chat(
                [{"role": "user", "content": case["question"]}],
                max_tokens=200,
                sampling=pg.Sampling(temperature=0),
            )
            right += answer.text == case["answer"]
    return right / len(questions)


def test_the_folder_is_small_and_complete(questions: list[dict[str, str]]) -> None:
    files = {path.name: path.stat().st_size for path in NANO.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {"config.json", "tokenizer.model", "model.safetensors.index.json"} <= set(files)
    assert sum(name.endswith(".safetensors") for name in files) == 2
    assert len(questions) >= 150
    assert len({case["question"] for case in questions}) == len(questions)
    assert len((NANO / "heldout.txt").read_text("utf-8").split()) >= 20_000


@pytest.mark.slow
def test_f16_answers(nano_f16: Path, questions: list[dict[str, str]]) -> None:
    assert share_of_right_answers(nano_f16, questions) >= 0.95


@pytest.mark.slow
def test_q4_k_m_answers(nano_q4: Path, questions: list[dict[str, str]]) -> None:
    assert share_of_right_answers(nano_q4, questions) >= 0.90


@pytest.mark.slow
def test_divergence_rises_as_bits_fall() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_heldout.py"), "--json"]
    command += ["--tokens", "4096", "--types", "Q8_0", "Q4_K_M", "Q2_K"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {row["type"]: row for row in json.loads(output)}
    assert all(math.isfinite(row["perplexity"]) for row in rows.values())
    assert (
        0 < rows["Q8_0"]["divergence"] < rows["Q4_K_M"]["divergence"] < rows["Q2_K"]["divergence"]
    )
