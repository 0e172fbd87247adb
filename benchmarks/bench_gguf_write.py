"""Writing a GGUF file of ready tensors, beside dd to the same disk; and the memory that it takes.

Both run in turn: dd with conv=fsync from /dev/zero, in blocks of 4 MiB, and a process that hands
tensors of random bytes to a GGUFWriter, which fsyncs too. The tensors are slices of one buffer
that is ready before the time begins.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from machine import describe
from phiggml.gguf import GGUFWriter

TENSOR_BYTES = 64 << 20
BUFFER_BYTES = 512 << 20
DD_BLOCK = 4 << 20


def write(path: Path, nbytes: int) -> dict[str, float]:
    """Seconds, and growth of the peak of resident memory in MB, of writing tensors to a file."""
    buffer = np.random.default_rng(0).integers(0, 256, min(nbytes, BUFFER_BYTES), np.uint8)
    tensors = [
        buffer[start % buffer.size :][: min(TENSOR_BYTES, nbytes - start)].view(np.int8)
        for start in range(0, nbytes, TENSOR_BYTES)
    ]
    # The peak so far is that of making the buffer: what is resident now counts.
    Path("/proc/self/clear_refs").write_text("5")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with GGUFWriter(path) as writer:
        writer.metadata["general.architecture"] = "phi3"
        for i, tensor in enumerate(tensors):
            writer.add_tensor(f"blk.{i}.weight", tensor)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {"seconds": seconds, "grown": grown * 1024 / 1e6}


def write_in_a_process(path: Path, nbytes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--write", str(path), "--bytes", str(nbytes)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(finished.stdout)
    return found


def dd(path: Path, nbytes: int) -> float:
    """Seconds that dd takes to write as many bytes."""
    command = ["dd", "if=/dev/zero", f"of={path}", f"bs={DD_BLOCK}", f"count={nbytes // DD_BLOCK}"]
    started = time.perf_counter()
    subprocess.run([*command, "conv=fsync"], capture_output=True, check=True)
    return time.perf_counter() - started


def compare(folder: Path, nbytes: int, rounds: int) -> None:
    ours: list[dict[str, float]] = []
    theirs: list[float] = []
    path = folder / "written"
    for i in range(rounds):
        # Who comes first alternates: the disk may still be at work for the one before.
        for turn in (i, i + 1):
            os.sync()
            if turn % 2:
                ours.append(write_in_a_process(path, nbytes))
            else:
                theirs.append(dd(path, nbytes))
            path.unlink()
    seconds = [run["seconds"] for run in ours]
    for name, column in (("dd conv=fsync", theirs), ("GGUFWriter", seconds)):
        rates = sorted(nbytes / 1e6 / run for run in column)
        print(
            f"{name:14s} {rates[-1]:7.0f} MB/s at best, {statistics.median(rates):7.0f} in the "
            f"median   ({', '.join(f'{run:.2f}' for run in column)} s)"
        )
    ratios = [a / b for a, b in zip(theirs, seconds, strict=True)]
    print(
        f"GGUFWriter's speed / dd's: {min(theirs) / min(seconds):.2f} at best, "
        f"{statistics.median(ratios):.2f} in the median of {rounds} rounds"
    )
    print(f"peak memory grew by {max(run['grown'] for run in ours):.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="on the disk to use")
    parser.add_argument("--bytes", type=int, default=4 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    nbytes = arguments.bytes // DD_BLOCK * DD_BLOCK
    if arguments.write is not None:
        print(json.dumps(write(arguments.write, nbytes)))
        return
    print(describe())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if free < 2 * nbytes:
            sys.exit(f"{arguments.folder}: {free / 1e9:.1f} GB are free: twice {nbytes} are needed")
        print(f"{nbytes / 1e9:.2f} GB to {arguments.folder.resolve()}")
        compare(Path(folder), nbytes, arguments.rounds)


if __name__ == "__main__":
    main()
