"""Writes the seeds that the fuzz targets start from: the tests' hostile recipes in every layout,
and random bytes, which are instructions to fuzz_python.py.

PYTHONPATH=tests python fuzz/make_corpus.py build/fuzz/seeds
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import hostile_gguf
import hostile_models

# Larger ones teach a fuzzer nothing and slow it down.
LONGEST = 16384
N_RANDOM = 64


def seeds() -> Iterator[bytes]:
    for layout in hostile_gguf.LAYOUTS:
        cases = hostile_gguf.cases(layout) | hostile_models.cases(layout)
        yield from (case.content for case in cases.values() if case.nbytes <= LONGEST)
    random = np.random.default_rng(0)
    for i in range(N_RANDOM):
        yield random.bytes(32 * i + 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for content in seeds():
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


if __name__ == "__main__":
    main()
