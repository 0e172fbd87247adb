"""Converting a checkpoint beside copying it, the memory that takes, and the time of a plan.

A random checkpoint of Phi-3.5-mini's shapes, 7.6 GB, is made where there is none (see
random_checkpoint.py). In turn, `cp --reflink=never` copies its files and a fresh process converts
it, each followed by an fsync of what it wrote; Python's start and imports count. Before each the
disk is idle (sync) and the checkpoint's pages are dropped from the page cache, so that both read
from the disk; with --warm they are read into it instead. Resident memory is the kernel's peak
(VmHWM) and the greatest of RssAnon and RssFile seen every 20 ms.

The plans are those of `phiggml convert --dry-run` in a fresh process: of Phi-3.5-mini and of
Phi-3.5-MoE, whose weights, 84 GB, are holes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import phiggml as pg
from machine import describe
from measured_process import Samples, measure
from page_cache import seconds_of_fsync, settle
from random_checkpoint import write_checkpoint

MODEL = "phi3.5-mini"


def copy(checkpoint: Path, folder: Path) -> float:
    """Seconds that cp takes, and an fsync of each file."""
    target = folder / "copy"
    started = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", checkpoint, target], check=True)
    for path in target.iterdir():
        seconds_of_fsync(path)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def convert(checkpoint: Path, folder: Path, type: str, samples: Samples) -> float:
    """Seconds that a fresh process takes; convert itself ends with an fsync."""
    target = folder / "converted.gguf"
    usage = measure((sys.executable, __file__, target, "--convert", checkpoint, "--type", type))
    samples.merge(usage.samples)
    target.unlink()
    return usage.seconds


def told(what: str, seconds: list[float]) -> str:
    each = ", ".join(f"{run:.2f}" for run in seconds)
    return f"{what:14s} {statistics.median(seconds):6.2f} s in the median ({each})"


def compare(checkpoint: Path, folder: Path, type: str, *, rounds: int, warm: bool) -> None:
    copies: list[float] = []
    ours: list[float] = []
    samples = Samples()
    turns: list[Callable[[], None]] = [
        lambda: copies.append(copy(checkpoint, folder)),
        lambda: ours.append(convert(checkpoint, folder, type, samples)),
    ]
    for i in range(rounds):
        # Who comes first alternates: the disk may still be at work for the one before.
        for turn in (i, i + 1):
            settle(checkpoint.iterdir(), warm=warm)
            turns[turn % 2]()
    ratios = [a / b for a, b in zip(ours, copies, strict=True)]
    print(told("copying", copies))
    print(told(f"to {type}", ours))
    print(
        f"{type} / copying: {statistics.median(ratios):.2f} in the median of {rounds} rounds, "
        f"{min(ours) / min(copies):.2f} of the best; {samples}"
    )


def time_plan(checkpoint: Path, rounds: int) -> None:
    """Prints the seconds of a dry run on the command line."""
    command = [sys.executable, "-m", "phiggml", "convert", str(checkpoint), "--dry-run"]
    command += ["-o", str(checkpoint / "none.gguf"), "--type", "BF16"]
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    lines = len(done.stdout.splitlines())
    print(told(f"plan {checkpoint.name}", seconds) + f", {weights / 1e9:.1f} GB, {lines} lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="on the disk to use")
    parser.add_argument("--checkpoint", type=Path, help="one that is there, or is to be made")
    parser.add_argument("--layers", type=int, help="of a smaller model than Phi-3.5-mini")
    parser.add_argument("--type", action="append", help="may be given again (default BF16)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="begin with a full page cache")
    parser.add_argument("--plans-only", action="store_true")
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    types = arguments.type or ["BF16"]
    if arguments.convert is not None:
        pg.convert(arguments.convert, arguments.folder, types[0])
        return
    print(describe())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint or folder / MODEL
        if not (checkpoint / "config.json").exists():
            write_checkpoint(
                checkpoint, MODEL, layers=arguments.layers, weights=not arguments.plans_only
            )
        for model in () if arguments.layers else ("phi3.5-moe",):
            write_checkpoint(folder / model, model, weights=False)
            time_plan(folder / model, arguments.rounds)
        time_plan(checkpoint, arguments.rounds)
        if arguments.plans_only:
            return
        nbytes = sum(path.stat().st_size for path in checkpoint.iterdir())
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if free < 2 * nbytes:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB are free: up to {2 * nbytes} are needed")
        state = "in the page cache" if arguments.warm else "not in the page cache"
        print(f"{checkpoint}: {nbytes / 1e9:.2f} GB, {state}, to {folder.resolve().parent}")
        for type in types:
            compare(checkpoint, folder, type, rounds=arguments.rounds, warm=arguments.warm)


if __name__ == "__main__":
    main()
