"""Perplexity and divergence of phi3-nano's types on its held-out text.

For each type: perplexity on examples/phi3-nano/heldout.txt, and the mean Kullback-Leibler
divergence of its next-token distribution from the F16 file's, over `Session.eval`. Both are
properties of the file, not of the machine; speed is printed for orientation.

    python benchmarks/bench_heldout.py [--types Q8_0 Q4_K_M Q2_K] [--tokens 8192] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
WINDOW = 256


@dataclass(frozen=True)
class Figures:
    type: str
    bits_per_weight: float
    perplexity: float
    divergence: float
    seconds: float


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


class Evaluation:
    """The held-out text in windows, and the F16 file's distributions over it."""

    def __init__(self, reference: pg.Model, n_tokens: int) -> None:
        text = (NANO / "heldout.txt").read_text("utf-8")
        tokens = reference.tokenize(text, add_special=False)[:n_tokens]
        self.windows = [
            tokens[i : i + WINDOW + 1] for i in range(0, len(tokens) - WINDOW - 1, WINDOW)
        ]
        self.reference = list(self._distributions(reference))

    def _distributions(self, model: pg.Model) -> list[npt.NDArray[np.float64]]:
        found = []
        with pg.Session(model, n_ctx=WINDOW) as session:
            for window in self.windows:
                session.reset()
                found.append(log_softmax(session.eval(window[:-1], logits="all")))
        return found

    def measure(self, model: pg.Model) -> tuple[float, float]:
        """Perplexity, and mean divergence in nats."""
        surprise, divergence, n = 0.0, 0.0, 0
        for window, truth, found in zip(
            self.windows, self.reference, self._distributions(model), strict=True
        ):
            surprise -= float(found[np.arange(WINDOW), window[1:]].sum())
            divergence += float((np.exp(truth) * (truth - found)).sum())
            n += WINDOW
        return math.exp(surprise / n), divergence / n


def figures(types: list[str], n_tokens: int, folder: Path) -> list[Figures]:
    pg.convert(NANO, folder / "F16.gguf", "F16")
    with pg.Model(folder / "F16.gguf") as reference:
        evaluation = Evaluation(reference, n_tokens)
    rows = []
    for type in ["F16", *types]:
        path = folder / f"{type}.gguf"
        report = pg.convert(NANO, path, type, overwrite=True)
        start = time.perf_counter()
        with pg.Model(path) as model:
            perplexity, divergence = evaluation.measure(model)
        seconds = time.perf_counter() - start
        rows.append(Figures(type, report.bits_per_weight, perplexity, divergence, seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K"])
    parser.add_argument("--tokens", type=int, default=8192, help="how much of the text to use")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = figures(arguments.types, arguments.tokens, Path(folder))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(describe())
    print(f"{'type':8}{'bits':>7}{'perplexity':>12}{'KL (nats)':>12}{'seconds':>9}")
    for row in rows:
        print(
            f"{row.type:8}{row.bits_per_weight:7.2f}{row.perplexity:12.4f}"
            f"{row.divergence:12.6f}{row.seconds:9.1f}"
        )


if __name__ == "__main__":
    main()
