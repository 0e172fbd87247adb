"""phiggml bench and benchmark_model: what is measured, what is said of it, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from command_line import Out, Terminal, complaint, phiggml
from phiggml import speed

QUICK = ("-p", "8,32", "-n", "4", "-r", "2")


def test_a_table(nano_f16: Path, capsys: Out) -> None:
    assert phiggml("bench", nano_f16, *QUICK, "--threads", "1,2") == 0
    text = capsys.readouterr().out
    for line in (
        r"^model +phi3 .*F16, 3\.67 M parameters, 7\.\d+ MB$",
        r"^weights +7\.\d+ MB on CPU \(.*\)$",
        r"^session +KV cache F16 and F16, flash attention auto, n_batch 512$",
        r"^versions +phiggml \S+, llama\.cpp b\d+, ggml \S+$",
    ):
        assert re.search(line, text, re.MULTILINE), line
    head, *rows = text.partition("\n\n")[2].splitlines()
    assert head.split() == ["test", "threads", "tokens/s", "deviation", "ms/token"]
    tests = [(name, threads) for name, threads, *_ in map(str.split, rows)]
    assert tests == [(name, threads) for threads in "12" for name in ("pp8", "pp32", "tg4")]
    assert len({len(row) for row in (head, *rows)}) == 1
    for row in rows:
        rate, _, milliseconds = map(float, row.split()[2:])
        assert rate * milliseconds == pytest.approx(1000, rel=0.01)
    assert max(map(len, text.splitlines())) <= 80


def test_json(nano_f16: Path, capsys: Out) -> None:
    options = ("--type-k", "q8_0", "--type-v", "q8_0", "--flash-attn", "on", "--n-batch", "16")
    assert phiggml("bench", nano_f16, *QUICK, "--json", *options, "--n-gpu-layers", "0") == 0
    document = json.loads(capsys.readouterr().out)
    with pg.GGUFFile(nano_f16) as file:
        nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    assert document["path"] == str(nano_f16)
    assert (document["type_k"], document["type_v"]) == ("Q8_0", "Q8_0")
    assert (document["flash_attn"], document["n_batch"]) == (True, 16)
    assert sum(device["nbytes"] for device in document["devices"]) == nbytes
    results = document["results"]
    assert [(r["name"], r["kind"], r["n_tokens"]) for r in results] == [
        ("pp8", "prompt", 8),
        ("pp32", "prompt", 32),
        ("tg4", "generation", 4),
    ]
    for result in results:
        rates = [result["n_tokens"] / seconds for seconds in result["seconds"]]
        assert len(rates) == 2
        assert result["tokens_per_second"] == pytest.approx(statistics.mean(rates))
        assert result["deviation"] == pytest.approx(statistics.stdev(rates))


def test_what_is_evaluated(nano_model: pg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repetition has an empty context and as many tokens as its name says."""
    seen: list[tuple[int, list[int]]] = []

    class Watched(pg.Session):
        def eval(self, tokens: Any, **options: Any) -> Any:
            seen.append((len(self.tokens), [int(token) for token in tokens]))
            return super().eval(tokens, **options)

    monkeypatch.setattr(speed, "Session", Watched)
    said: list[tuple[str, int, int]] = []

    def measure(seed: int) -> list[tuple[int, list[int]]]:
        seen.clear()
        pg.benchmark_model(
            nano_model,
            n_prompt=[6],
            n_gen=[3],
            repetitions=2,
            seed=seed,
            progress=lambda event: said.append((event.stage, event.done, event.total)),
        )
        return list(seen)

    first = measure(7)
    shape = [(held, len(tokens)) for held, tokens in first]
    generation = [(0, 1), *2 * [(0, 1), (1, 1), (2, 1)]]
    assert shape == [*3 * [(0, 6)], *generation]
    assert said == [
        *(("pp6", done, 18) for done in (0, 6, 12, 18)),
        *(("tg3", done, 7) for done in range(8)),
    ]
    assert measure(7) == first != measure(8)
    assert all(0 <= token < nano_model.n_vocab for _, tokens in first for token in tokens)


def test_figures() -> None:
    alone = pg.Speed("prompt", 100, 2, (0.5,))
    assert (alone.name, alone.rates, alone.deviation) == ("pp100", (200.0,), 0.0)
    assert pg.Speed("generation", 10, 1, (1.0, 2.0, 5.0)).tokens_per_second == pytest.approx(17 / 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_prompt": [0]},
        {"n_gen": [True]},
        {"n_prompt": 64},
        {"n_gen": "64"},
        {"repetitions": 0},
        {"threads": 0},
        {"type_k": "F17"},
    ],
)
def test_wrong_arguments(nano_model: pg.Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(pg.InputError):
        pg.benchmark_model(nano_model, **wrong)


def test_complaints(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    assert phiggml("bench", nano_f16, "-p", "0", "-n", "0") == 3
    assert "nothing to measure" in complaint(capsys)
    assert phiggml("bench", tmp_path / "absent.gguf") == 8
    assert "absent.gguf: No such file" in complaint(capsys)
    for wrong in ("a,b", "-3", "8,", ""):
        with pytest.raises(SystemExit, match="2"):
            phiggml("bench", nano_f16, f"-p={wrong}")
        assert "no list of numbers" in complaint(capsys)


def test_progress_on_a_terminal(
    nano_f16: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("phiggml.cli_terminal._BAR_AFTER_SECONDS", 0.0)
    assert phiggml("bench", nano_f16, "-p", "0", "-n", "64", "-r", "3") == 0
    assert "tg64" in screen.getvalue() and " tokens/s" in screen.getvalue()
    assert "tg64" in capsys.readouterr().out


def test_ctrl_c(nano_f16: Path) -> None:
    """Rows that are measured stay; the end is one line, and no traceback."""
    command = [sys.executable, "-m", "phiggml", "bench", nano_f16, "-p", "8", "-n", "4096"]
    with subprocess.Popen(
        [*command, "-r", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        while not child.stdout.readline().startswith("pp8 "):
            assert child.poll() is None
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 130
        assert child.stderr.read() == "phiggml: interrupted.\n"
        assert child.stdout.read() == ""
