"""Seconds that `import phiggml` takes in a fresh interpreter, warm, beside numpy alone.

python benchmarks/bench_import.py [--runs 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from machine import describe

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    pairs = [(seconds("numpy"), seconds("phiggml")) for _ in range(runs + 1)][1:]
    numpy, phiggml = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(describe())
    print(f"median of {runs}: import phiggml {phiggml:.3f} s, import numpy {numpy:.3f} s")
    print(f"ratio {phiggml / numpy:.2f}")


if __name__ == "__main__":
    main()
