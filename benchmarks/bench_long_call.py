"""What a long call of quantize costs the rest of its process: other threads, Ctrl-C, memory.

A second Python thread counts while one quantizes on one thread, and counts again for as long
without it: the quotient is its speed. Rounds are taken in turn. Ctrl-C is sent to a process of its
own in the middle of a call; what is measured is the time until KeyboardInterrupt is raised. Memory
is the peak of a process that quantizes 1 GB of bfloat16 to Q4_K, less the array and the result.

    python benchmarks/bench_long_call.py
"""

from __future__ import annotations

import functools
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import phiggml as pg
from machine import describe

INTERRUPTED = """
import sys, time
import numpy as np
import phiggml as pg
x = np.random.default_rng(0).standard_normal((1 << 17, 4096), dtype=np.float32)
imatrix = np.ones(4096, np.float32)
pg.quantize(x[:1], "IQ2_XS", imatrix=imatrix)
print("begin", flush=True)
try:
    pg.quantize(x, "IQ2_XS", imatrix=imatrix, threads=1)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""

MEMORY = """
import numpy as np
import ml_dtypes
import phiggml as pg
x = np.tile(np.random.default_rng(0).integers(0, 0x4000, 1 << 22, dtype=np.uint16), 128)
x = x.view(ml_dtypes.bfloat16).reshape(-1, 4096)
q = pg.quantize(x, "Q4_K")
print(x.nbytes, q.nbytes, open("/proc/self/status").read())
"""


class Counter(threading.Thread):
    """Counts as fast as Python does until it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.going = True

    def run(self) -> None:
        while self.going:
            self.count += 1


def count_beside(work: Callable[[], object]) -> tuple[int, float]:
    """How far a thread counts while ``work()`` runs, and the seconds of that."""
    counter = Counter()
    start = time.perf_counter()
    counter.start()
    work()
    elapsed = time.perf_counter() - start
    counter.going = False
    counter.join()
    return counter.count, elapsed


def other_threads(rounds: int = 5) -> list[float]:
    x = np.random.default_rng(0).standard_normal((1 << 16, 4096), dtype=np.float32)
    pg.quantize(x[:16], "Q4_K")
    quotients = []
    for _ in range(rounds):
        count, seconds = count_beside(lambda: pg.quantize(x, "Q4_K", threads=1))
        alone, elapsed = count_beside(functools.partial(time.sleep, seconds))
        quotients.append(count / seconds / (alone / elapsed))
    return quotients


def interruption() -> float:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(0.5)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
        return time.perf_counter() - start


def memory() -> tuple[float, float, float]:
    """MB of the array, of its result, and of the peak beyond both and beyond an idle process."""
    idle = "import numpy, ml_dtypes, phiggml; print(0, 0, open('/proc/self/status').read())"
    sizes = []
    for script in (idle, MEMORY):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        found = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
        assert found is not None
        x, q = map(int, done.stdout.split(maxsplit=2)[:2])
        sizes.append((x / 1e6, q / 1e6, int(found[1]) * 1024 / 1e6))
    (_, _, idle_peak), (x_size, q_size, peak) = sizes
    return x_size, q_size, peak - x_size - q_size - idle_peak


def main() -> None:
    print(describe())
    quotients = other_threads()
    print(
        f"another thread counts at {statistics.median(quotients):.0%} of its speed "
        f"({', '.join(f'{q:.0%}' for q in quotients)})"
    )
    times = [interruption() for _ in range(3)]
    print(f"KeyboardInterrupt after {', '.join(f'{t * 1e3:.0f}' for t in times)} ms")
    if Path("/proc/self/status").exists():
        x, q, rest = memory()
        print(
            f"{x:.0f} MB of bfloat16 to {q:.0f} MB of Q4_K: {rest:.1f} MB beside them at the peak"
        )


if __name__ == "__main__":
    main()
