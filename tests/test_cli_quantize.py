"""What convert and quantize hand to the API, what they tell of its report, and Ctrl-C."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tqdm

import phiggml as pg
from command_line import NANO, Out, Terminal, complaint, phiggml
from imatrix_files import Entry, sums, write_gguf
from phiggml import cli_terminal
from phiggml.recipe import Plan, PlannedTensor
from phiggml.report import Report

TENSORS = (
    PlannedTensor("a\n\x1b[2J.weight", (4, 256), "F16", "Q6_K", 2048, 840, note="it is odd"),
    PlannedTensor("b.weight", (4, 256), "F16", "Q4_K", 2048, 576),
)
MADE = Report(
    Path("\x1bout.gguf"),
    Plan("Q4_K_M", 15, TENSORS, notes=("override 'x' has no effect on any tensor",)),
    4096,
    12.34,
    stages={"plan": 0.1, "read": 2.0, "convert": 20.0, "write": 1.0, "finish": 0.2},
    peak_memory=412_000_000,
    errors={"b.weight": 0.0625},
    warnings=("imatrix: b.weight: experts 1, 2 have no data.", "imatrix: is it of this model?"),
)


Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments with which both verbs are called; their answer is MADE."""
    seen: Calls = []

    def watched(verb: Callable[..., Report]) -> Callable[..., Report]:
        @functools.wraps(verb)
        def call(*arguments: Any, **settings: Any) -> Report:
            seen.append((arguments, settings))
            return MADE

        return call

    for name in ("convert", "quantize_model"):
        monkeypatch.setattr(pg, name, watched(getattr(pg, name)))
    return seen


# arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ((), {}),
        (("--max-memory", "500M"), {"max_memory": 500_000_000}),
        (("--split-max-size", "2.5g"), {"split_max_bytes": 2_500_000_000}),
        (("--split-max-size", "123456"), {"split_max_bytes": 123_456}),
        (("--measure-error",), {"measure_error": True}),
        (("--pure", "--leave-output"), {"pure": True, "quantize_output": False}),
        (
            ("--output-type", "q6_k", "--embedding-type", "q8_0"),
            {"output_type": "q6_k", "embedding_type": "q8_0"},
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_flags_are_options(
    verb: str,
    flags: tuple[str, ...],
    changed: dict[str, Any],
    calls: Calls,
    capsys: Out,
) -> None:
    assert phiggml(verb, "in", "-o", "out", "--type", "Q4_0", *flags) == 0
    ((positional, settings),) = calls
    assert positional == ("in", "out", "Q4_0")
    given = {f.name: getattr(settings["options"], f.name) for f in fields(pg.QuantizeOptions)}
    standard = {f.name: f.default for f in fields(pg.QuantizeOptions)}
    assert given == {**standard, **changed}
    assert settings["imatrix"] is None


@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_an_imatrix_is_a_path(verb: str, calls: Calls) -> None:
    line = (verb, "in", "-o", "out", "--type", "Q2_K_S", "--imatrix", "phi.dat")
    assert phiggml(*line, "-q", "--threads", "1", "--override", "^a$=Q8_0", "--overwrite") == 0
    ((_, settings),) = calls
    assert settings["imatrix"] == "phi.dat"
    assert (settings["threads"], settings["overrides"]) == (1, {"^a$": "Q8_0"})
    assert (settings["overwrite"], settings["dry_run"]) == (True, False)


def test_convert_has_a_default_type_and_quantize_none(calls: Calls, capsys: Out) -> None:
    assert phiggml("convert", "in", "-o", "out", "-q") == 0
    assert calls[0][0] == ("in", "out", "F16")
    with pytest.raises(SystemExit) as left:
        phiggml("quantize", "in", "-o", "out")
    assert left.value.code == 2
    assert "--type --recipe is required" in complaint(capsys)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--type", "F16", "--recipe", "r.json"), "not allowed with"),
        (("--type", "Q4_0", "--split-max-size", "-1"), "--split-max-size"),
        (("--type", "Q4_0", "--max-memory", "much"), "no size such as 500M"),
    ],
)
@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_flags_that_cannot_be(verb: str, flags: tuple[str, ...], says: str, capsys: Out) -> None:
    with pytest.raises(SystemExit) as left:
        phiggml(verb, "in", "-o", "out", *flags)
    assert left.value.code == 2
    assert says in complaint(capsys)


def test_parts_are_kept_of_what_has_parts(calls: Calls, capsys: Out) -> None:
    """The shards of a checkpoint are none."""
    line = ("in", "-o", "out", "--type", "Q4_0", "--keep-split")
    assert phiggml("quantize", *line, "-q") == 0
    assert calls[0][1]["options"] == pg.QuantizeOptions(keep_split=True)
    for verb, *more in (("convert",), ("quantize", "--split-max-size", "1G")):
        with pytest.raises(SystemExit) as left:
            phiggml(verb, *line, *more)
        assert left.value.code == 2
        assert "--keep-split" in complaint(capsys)


@pytest.mark.parametrize("flag", ["--max-memory", "--split-max-size"])
def test_a_size_of_nothing(flag: str, nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out.gguf"
    assert phiggml("quantize", nano_f16, "-o", out, "--type", "Q4_0", flag, "0") == 3
    assert "positive number of bytes" in complaint(capsys)
    assert not out.exists()


def test_what_cannot_be_source_or_target(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    recipe = tmp_path / "recipe.json"
    pg.Recipe("Q4_0").save(recipe)
    saved = recipe.read_bytes()
    assert phiggml("quantize", nano_f16, "-o", recipe, "--recipe", recipe, "--overwrite") == 3
    assert "it is the recipe itself" in complaint(capsys)
    assert recipe.read_bytes() == saved
    assert phiggml("quantize", NANO, "-o", tmp_path / "out.gguf", "--type", "Q4_0") == 4
    assert "`phiggml convert`" in complaint(capsys)


# what is told -------------------------------------------------------------------------------------


def test_json_is_the_document(calls: Calls, capsys: Out) -> None:
    assert phiggml("quantize", "in", "-o", "out", "--type", "Q4_0", "--json") == 0
    assert calls
    assert json.loads(capsys.readouterr().out) == MADE.document()


def test_the_summary(calls: Calls, capsys: Out) -> None:
    assert phiggml("quantize", "in", "-o", "out", "--type", "Q4_0") == 0
    assert calls
    assert capsys.readouterr().out.splitlines() == [
        "type  tensors       size  share",
        "Q6_K        1  840 bytes  59.3%",
        "Q4_K        1  576 bytes  40.7%",
        r"a\n\x1b[2J.weight: Q6_K, it is odd.",
        "override 'x' has no effect on any tensor.",
        "warning: imatrix: b.weight: experts 1, 2 have no data.",
        "warning: imatrix: is it of this model?",
        "largest error: nrmse 0.06250, b.weight",
        "seconds: plan 0.10, write 1.00, finish 0.20; threads: read 2.00, convert 20.0",
        "peak memory: 412 MB",
        r"\x1bout.gguf: Q4_K_M, 4.10 kB, 5.53 bits per weight, 12.3 s",
    ]


def test_a_dry_run_is_the_table(calls: Calls, capsys: Out) -> None:
    assert phiggml("quantize", "in", "-o", "out", "--type", "Q4_0", "--dry-run") == 0
    assert calls[0][1]["dry_run"] is True
    assert capsys.readouterr().out == f"{MADE}\n"


# end to end ---------------------------------------------------------------------------------------


def test_the_document_of_a_run(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    """Parts of a model, errors, stages and memory are what was written and can be measured."""
    line = ("quantize", nano_f16, "-o", tmp_path / "out.gguf", "--type", "Q4_K_M", "--json")
    more = ("--split-max-size", "1M", "--measure-error", "--threads", "1", "--max-memory", "300k")
    assert phiggml(*line, *more, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert phiggml(*line, *more) == 0
    document = json.loads(capsys.readouterr().out)
    parts = [Path(path) for path in document["paths"]]
    assert sorted(tmp_path.iterdir()) == parts
    assert (document["path"], len(parts) > 2) == (str(parts[0]), True)
    assert document["nbytes"] == planned["nbytes"] == sum(p.stat().st_size for p in parts)
    assert list(document["stages"]) == ["plan", "read", "convert", "write", "finish"]
    alone = [document["stages"][name] for name in ("plan", "write", "finish")]
    assert 0 < sum(alone) < document["seconds"]
    assert min(document["stages"].values()) >= 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 10**6 < document["peak_memory"] <= resident
    before, after = numbers(nano_f16), {k: v for p in parts for k, v in numbers(p).items()}
    assert after.keys() == before.keys() == {t["name"] for t in document["tensors"]}
    for tensor in document["tensors"]:
        x, y = before[tensor["name"]], after[tensor["name"]]
        lost = float(np.sqrt(np.sum((x - y) ** 2) / np.sum(x**2)))
        if tensor["type"] == tensor["source_type"]:
            assert tensor["nrmse"] is None
        else:
            assert lost > 0.001
            assert tensor["nrmse"] == pytest.approx(lost, rel=1e-5)


def numbers(path: Path) -> dict[str, Any]:
    """As the gguf package reads them, float64[rows, n]."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in gguf.GGUFReader(path).tensors
    }


def test_parts_are_kept(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    parts = pg.split_gguf(nano_f16, tmp_path / "in", max_tensors=10)
    out = tmp_path / "out.gguf"
    line = ("quantize", parts[0], "-o", out, "--type", "Q8_0", "--keep-split", "--json")
    assert phiggml(*line) == 0
    kept = [Path(path) for path in json.loads(capsys.readouterr().out)["paths"]]
    names = [[t.name for t in gguf.GGUFReader(path).tensors] for path in parts]
    assert [[t.name for t in gguf.GGUFReader(path).tensors] for path in kept] == names


def test_a_saved_recipe_makes_the_same_file(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    recipe, files = tmp_path / "nano.json", [tmp_path / "type.gguf", tmp_path / "recipe.gguf"]
    chosen = ("--type", "q4_k_m", "--override", "ffn_up=Q5_0", "--output-type", "q8_0")
    assert phiggml("recipe", "show", nano_f16, *chosen, "--save", recipe, "-q") == 0
    assert phiggml("quantize", nano_f16, "-o", files[0], *chosen, "-q") == 0
    for verb, source in (("quantize", nano_f16), ("convert", NANO)):
        line = (verb, source, "-o", files[1], "--recipe", recipe, "--overwrite", "-q")
        assert phiggml(*line) == 0
        types = [
            {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors} for path in files
        ]
        assert types[0] == types[1]
        if verb == "quantize":
            assert files[0].read_bytes() == files[1].read_bytes()
    assert {types[0]["blk.0.ffn_up.weight"], types[0]["output.weight"]} == {"Q5_0", "Q8_0"}
    assert capsys.readouterr().err == ""


def test_an_imatrix_file_is_used_and_told(nano_f16: Path, tmp_path: Path, capsys: Out) -> None:
    """Its importances are those of the API; one that does not fit is refused in a line."""
    with pg.GGUFFile(nano_f16) as file:
        shapes = {t.name: t.shape for t in file.tensors.values() if len(t.shape) == 2}
    entries = [
        Entry(name, sums(shape[-1], seed=i)) for i, (name, shape) in enumerate(shapes.items())
    ]
    path = write_gguf(tmp_path / "nano.imatrix.gguf", entries)
    out, called = tmp_path / "out.gguf", tmp_path / "called.gguf"
    line = ("quantize", nano_f16, "-o", out, "--type", "Q2_K_S", "--threads", "2")
    assert phiggml(*line) == 3
    assert "importance matrix" in complaint(capsys)
    assert phiggml(*line, "--imatrix", path, "-q") == 0
    pg.quantize_model(nano_f16, called, "Q2_K_S", imatrix={e.name: e.means[0] for e in entries})
    data = [{t.name: t.data.tobytes() for t in gguf.GGUFReader(p).tensors} for p in (out, called)]
    assert data[0] == data[1]
    assert gguf.GGUFReader(out).get_field("quantize.imatrix.file") is not None
    other = write_gguf(tmp_path / "other.gguf", [Entry("output.weight", sums(7))])
    assert phiggml(*line, "--imatrix", other, "--overwrite") == 3
    assert "output.weight" in complaint(capsys)
    assert phiggml(*line, "--imatrix", tmp_path / "none.dat", "--overwrite") == 8
    assert str(tmp_path / "none.dat") in complaint(capsys)
    assert phiggml(*line[:-4], "--recipe", tmp_path / "none.json", "--overwrite") == 8
    assert str(tmp_path / "none.json") in complaint(capsys)


def test_names_that_steer_a_terminal(
    nano_f16: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bar, table, summary and JSON of a whole run; the file has the name as it was."""
    name = "blk.0.\x1b[2J\n\u202e.weight"
    source = tmp_path / "in.gguf"
    with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(source) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata.exact(key)
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.data, tensor.type)
        writer.add_tensor(name, np.ones((8, 250), np.float16))
    line = ("quantize", source, "-o", tmp_path / "out.gguf", "--type", "Q4_K_M", "--overwrite")
    screen = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", screen)
        patched.setattr(cli_terminal, "_BAR_AFTER_SECONDS", 1e-9)
        patched.setattr(tqdm, "tqdm", functools.partial(tqdm.tqdm, mininterval=0))
        assert phiggml(*line, "--measure-error") == 0
    assert r"blk.0.\x1b[2J" in screen.getvalue()
    assert screen.getvalue().replace("\r", "").isprintable()
    assert phiggml(*line, "--dry-run") == 0
    text = capsys.readouterr().out
    assert all(row.isprintable() for row in text.split("\n"))
    assert text.count(r"blk.0.\x1b[2J\n\u202e.weight") == 2
    assert phiggml(*line, "--json") == 0
    told = {t["name"]: t["note"] for t in json.loads(capsys.readouterr().out)["tensors"]}
    assert told[name]


# Ctrl-C -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, nano_f16: Path) -> Path:
    """phi3-nano with four times 16 million numbers, which take a second to quantize."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    weight = np.random.default_rng(0).standard_normal((4096, 4096), np.float32).astype(np.float16)
    with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata[key]
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.dequantize().astype(np.float16))
        for i in range(4):
            writer.add_tensor(f"blk.{i}.attn_large.weight", weight)
    return path


def lines_of_screen(written: str) -> list[str]:
    """What remains to be seen: a carriage return goes back to the line's begin, to write over."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown: list[str] = []
        for state in line.split("\r"):
            shown[: len(state)] = state
        lines.append("".join(shown).rstrip())
    return lines


def test_ctrl_c_on_a_terminal(large: Path, tmp_path: Path) -> None:
    """One line remains, no bar, no file, and the exit code of an interruption."""
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "phiggml", "quantize", large, "-o", out, "--type", "IQ3_S"]
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [*map(str, command), "--threads", "1"],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    ) as child:  # fmt: skip
        os.close(terminal)
        said = b""
        while b"left" not in said:  # the bar is there
            said += os.read(main, 65536)
        pressed = time.monotonic()
        child.send_signal(signal.SIGINT)
        while True:
            try:
                said += os.read(main, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
        assert child.wait(timeout=20) == 130
        seconds = time.monotonic() - pressed
    os.close(main)
    assert seconds < 1
    text = said.decode()
    assert re.search(r"quantize +\d+%\|", text)
    assert [line for line in lines_of_screen(text) if line] == ["phiggml: interrupted."]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_without_a_terminal(large: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-c",
        "import sys, phiggml as pg, phiggml.cli as cli\n"
        "quantize = pg.quantize_model\n"
        "def told(*arguments, progress, **more):\n"
        "    def step(event):\n"
        "        if event.done and not said:\n"
        "            said.append(print('started', flush=True))\n"
        "        progress(event)\n"
        "    said = []\n"
        "    return quantize(*arguments, progress=step, **more)\n"
        "pg.quantize_model = told\n"
        "sys.exit(cli.main(sys.argv[1:]))",
        "quantize", str(large), "-o", str(tmp_path / "out.gguf"), "--type", "IQ3_S",
        "--threads", "1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=20)
    assert (child.returncode, output, errors) == (130, "", "phiggml: interrupted.\n")
    assert list(tmp_path.iterdir()) == []
