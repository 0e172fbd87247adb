"""What a device does with models: logits beside the CPU's, speed and memory, as a table.

PYTHONPATH=benchmarks python tools/gpu_check.py bench --device CUDA0 --work build/gpu
PYTHONPATH=benchmarks python tools/gpu_check.py report --device CUDA0 --work build/gpu [--write P]

tools/gpu_check.sh builds what this runs with, and calls it. Rows are kept in WORK: a row that is
there already, of the same build, is not measured again, so that a call can be cut off at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe
from page import write_between
from phiggml import _core
from random_checkpoint import write_checkpoint

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
MODELS = ("phi3-nano", "random-3.8B")
TYPES = ("Q4_K_M", "Q8_0", "F16")
SHARES = ("cpu", "0", "half", "all")
SEED = 0
N_COMPARED = 64  # tokens whose logits are compared
WARM_UP = 2  # generated tokens that are not timed

# Relative errors of logits (nrmse) up to which a row is right: both sides round, activations of
# quantized products to 8 bits. Random weights make more of that; a wrong product gives 0.3.
BOUNDS = {"F16": 0.02, "Q8_0": 0.05, "Q4_K_M": 0.05}
RANDOM_BOUND = 0.1

Logits = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a file with some layers on a device.

    Attributes:
        build: versions and build id; rows of another build are measured anew.
        device: its name.
        model: one of MODELS, or that with fewer layers.
        type: of the whole model.
        share: "cpu" for the CPU alone, else the layers that the device was given.
        n_layers: how many these are; the output counts as one.
        file_bytes: of the weights.
        prompt: tokens per second of a prompt, the median of some.
        answer: tokens per second one after the other.
        memory: bytes of the device that model and session took.
        error: relative difference of logits from those of the CPU alone.
    """

    build: str
    device: str
    model: str
    type: str
    share: str
    n_layers: int
    file_bytes: int
    prompt: float
    answer: float
    memory: int
    error: float

    @property
    def is_right(self) -> bool:
        """Whether the logits are those of the CPU, within what rounding gives."""
        return self.error <= (BOUNDS[self.type] if self.model == MODELS[0] else RANDOM_BOUND)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How much is timed: tokens of a prompt and of an answer, and how often the prompt."""

    prompt: int
    answer: int
    rounds: int


def build() -> str:
    """What must be the same for rows to be of one table."""
    versions = " ".join(f"{name} {version}" for name, version in _core.runtime.versions())
    return f"{pg.__version__} {versions} {_core.runtime.build_id()}"


def layers_of(share: str, n_layer: int) -> int:
    """How many layers a device gets, the output counting as one.

    Args:
        share: one of SHARES.
        n_layer: layers of the model.
    """
    return {"cpu": 0, "0": 0, "half": (n_layer + 1) // 2, "all": n_layer + 1}[share]


def relative_error(found: Logits, wanted: Logits) -> float:
    """nrmse; infinite where a number is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def device_named(name: str) -> pg.Device:
    present = {device.name: device for device in pg.devices()}
    if name not in present:
        raise SystemExit(f"gpu_check: there is no device {name!r}. Present: {', '.join(present)}.")
    return present[name]


def model_file(work: Path, model: str, type: str, random_layers: int | None) -> Path:
    """A GGUF file, made when it is not there; a killed call leaves none that is half written."""
    path = work / "models" / f"{model}-{type}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = NANO
    if model != MODELS[0]:
        checkpoint = work / "models" / model
        if not (checkpoint / "model.safetensors.index.json").exists():  # it is written last
            print(f"writing {checkpoint}", flush=True)
            write_checkpoint(checkpoint, layers=random_layers, seed=SEED)
    print(f"converting {path.name}", flush=True)
    pg.convert(checkpoint, path, type)
    return path


def tokens_of(model: pg.Model, n: int) -> npt.NDArray[np.int64]:
    """Tokens from a seed; the first few of a vocabulary are control tokens."""
    return np.random.default_rng(SEED).integers(3, min(model.n_vocab, 32_000) - 64, n)


def compared_logits(path: Path, work: Path) -> Logits:
    """The CPU's alone, kept for the other rows of that file."""
    kept = work / "logits" / f"{path.stem}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            if str(arrays["build"]) == build() and int(arrays["size"]) == path.stat().st_size:
                return np.asarray(arrays["logits"])
    with pg.Model(path, devices=[]) as model, pg.Session(model, n_ctx=N_COMPARED) as session:
        logits = session.eval(tokens_of(model, N_COMPARED), logits="all")
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, logits=logits, build=build(), size=path.stat().st_size)
    return logits


def speeds(session: pg.Session, lengths: Lengths) -> tuple[float, float]:
    """Tokens per second of a prompt and of an answer."""
    text = tokens_of(session.model, lengths.prompt)
    seconds = []
    for _ in range(lengths.rounds + 1):
        session.reset()
        start = time.perf_counter()
        session.eval(text)
        seconds.append(time.perf_counter() - start)
    for token in text[:WARM_UP]:
        session.eval([token])
    start = time.perf_counter()
    for token in np.resize(text, lengths.answer):
        session.eval([token])
    answer = lengths.answer / (time.perf_counter() - start)
    return lengths.prompt / statistics.median(seconds[1:]), answer  # the first one warms up


def measured(path: Path, device: str, share: str, lengths: Lengths) -> tuple[Any, Logits]:
    """Speeds, layers and memory of a file on a device, and the logits there."""
    free = device_named(device).memory_free
    with pg.GGUFFile(path) as file:
        n_layer = int(file.metadata[f"{file.metadata['general.architecture']}.block_count"])
    n_layers = layers_of(share, n_layer)
    devices = [] if share == "cpu" else [device]
    n_ctx = max(lengths.prompt + WARM_UP + lengths.answer, N_COMPARED)
    with (
        pg.Model(path, n_gpu_layers=n_layers, devices=devices) as model,
        pg.Session(model, n_ctx=n_ctx) as session,
    ):
        logits = session.eval(tokens_of(model, N_COMPARED), logits="all")
        prompt, answer = speeds(session, lengths)
        memory = max(0, free - device_named(device).memory_free)
        n_bytes = model.nbytes
    found = {"n_layers": n_layers, "file_bytes": n_bytes, "memory": memory}
    return {**found, "prompt": prompt, "answer": answer}, logits


def kept_rows(work: Path) -> list[Row]:
    """Rows of earlier calls."""
    path = work / "rows.jsonl"
    if not path.exists():
        return []
    fields = {field.name for field in dataclasses.fields(Row)}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Row(**row) for row in rows if row.keys() == fields]


def rows_of(work: Path, device: str) -> dict[tuple[str, str, str], Row]:
    """What is measured already of this build: model, type and share -> row."""
    rows = [row for row in kept_rows(work) if (row.build, row.device) == (build(), device)]
    return {(row.model, row.type, row.share): row for row in rows}


def bench(arguments: argparse.Namespace) -> int:
    """Measures the rows that are not there; 1 if any of the table is wrong."""
    work, device = arguments.work, device_named(arguments.device).name
    work.mkdir(parents=True, exist_ok=True)
    done = rows_of(work, device)
    lengths = Lengths(arguments.prompt, arguments.answer, arguments.rounds)
    for model in arguments.models:
        name = model
        if model != MODELS[0] and arguments.random_layers is not None:
            name = f"{model}-{arguments.random_layers}-layers"
        for type, share in itertools.product(arguments.types, arguments.shares):
            if (name, type, share) in done:
                continue
            path = model_file(work, name, type, arguments.random_layers)
            wanted = compared_logits(path, work)
            facts, logits = measured(path, device, share, lengths)
            error = relative_error(logits, wanted)
            row = Row(build(), device, name, type, share, error=error, **facts)
            with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            done[name, type, share] = row
            print(table([row]).splitlines()[-1], flush=True)
        if not arguments.keep_files:
            shutil.rmtree(work / "models", ignore_errors=True)
    return int(not all(row.is_right for row in done.values()))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    head = "model | type | file | layers | prompt, tokens/s | answer, tokens/s | memory | logits"
    lines = [f"| {head} |", "| --- | --- | --: | --: | --: | --: | --: | --: |"]
    for row in rows:
        layers = "CPU alone" if row.share == "cpu" else f"{row.n_layers}"
        said = f"{row.error:.1e}" + ("" if row.is_right else " **wrong**")
        cells = (
            row.model,
            row.type,
            f"{row.file_bytes / 1e6:,.1f} MB",
            layers,
            f"{row.prompt:,.0f}" if row.prompt >= 10 else f"{row.prompt:.2f}",
            f"{row.answer:,.0f}" if row.answer >= 100 else f"{row.answer:.1f}",
            f"{row.memory / 2**20:,.0f} MiB",
            said,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def driver() -> str:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    name, _, version = said.splitlines()[0].partition(", ")
    return f"; driver {version} of {name}"


def report(arguments: argparse.Namespace) -> int:
    """Prints the table, and writes it where told; 1 if a row is wrong or none is there."""
    rows = rows_of(arguments.work, arguments.device)
    if not rows:
        raise SystemExit(f"gpu_check: {arguments.work} has no rows of this build. Run bench first.")
    device = device_named(arguments.device)
    tests = arguments.work / "tests.txt"
    head = [
        f"{device.name}: {device.description}, {device.memory_total / 2**30:.1f} GiB{driver()}.",
        describe().replace("\n", ".  \n") + ".",
    ]
    if tests.exists():
        head.append(f"Device tests: {tests.read_text('utf-8').strip()}.")
    text = "  \n".join(head) + "\n\n" + table(list(rows.values()))
    print(text)
    if arguments.write is not None:
        write_between(arguments.write, "gpu_check.py", text)
    return int(not all(row.is_right for row in rows.values()))


def _choices(known: Sequence[str]) -> dict[str, Any]:
    return {"nargs": "+", "choices": known, "default": list(known)}


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, run in (("bench", bench), ("report", report)):
        stage = stages.add_parser(name)
        stage.set_defaults(run=run)
        stage.add_argument("--device", default="CUDA0", help="as `phiggml devices` names it")
        stage.add_argument("--work", type=Path, default=Path("build/gpu"), help="is kept")
        if name == "report":
            stage.add_argument("--write", type=Path, help="a page with gpu_check.py's marker lines")
            continue
        stage.add_argument("--models", **_choices(MODELS))
        stage.add_argument("--types", **_choices(TYPES))
        stage.add_argument("--shares", **_choices(SHARES))
        stage.add_argument("--random-layers", type=int, help="fewer than 32, for a trial")
        stage.add_argument("--prompt", type=int, default=512, help="tokens")
        stage.add_argument("--answer", type=int, default=64, help="tokens")
        stage.add_argument("--rounds", type=int, default=3, help="prompts that are timed")
        stage.add_argument("--keep-files", action="store_true", help="the models, 30 GB of them")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parsed()
    raise SystemExit(chosen.run(chosen))
