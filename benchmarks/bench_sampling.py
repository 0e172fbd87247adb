"""Milliseconds that choosing one token takes, beside llama.cpp's own samplers of the same build.

The logits are made up: most of them normal, and some tens of likely tokens. 2,000 tokens were read
before. Not in llama.cpp's time: filling its array of all tokens, which it does for each token too.
Both run in turn, on one thread; medians.

    python benchmarks/bench_sampling.py [--tokens 200064 32064] [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe
from phiggml import _core

# Small models and llama.cpp's samplers are declared where the tests have them.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from small_models import N_EMBD, small_model
from upstream_chain import UpstreamChain

OFF: dict[str, Any] = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHAINS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top_k + top_p + temperature": {**OFF, "top_k": 40, "top_p": 0.95},
    "Sampling()": {},
    "penalties": {"repeat_penalty": 1.1, "frequency_penalty": 0.1},
    "DRY over 2000 tokens": {"dry_multiplier": 0.8, "dry_penalty_last_n": 2000},
    "mirostat 1": {"mirostat": 1},
    "mirostat 2": {"mirostat": 2},
    "min_p": {**OFF, "min_p": 0.05},
    "top_p": {**OFF, "top_p": 0.95},
    "typical_p": {**OFF, "typical_p": 0.9},
    "top_n_sigma": {**OFF, "top_n_sigma": 1.0},
    "temperature": OFF,
}
N_READ = 2000
# Milliseconds for top_k + top_p + temperature, by number of tokens: what we promise.
TARGETS = {200064: 0.3}


def write_model(path: Path, n_vocab: int) -> Path:
    """A model of so many tokens, whose weights nobody looks at."""
    model = small_model("phi3")
    tokens = model.metadata["tokenizer.ggml.tokens"]
    n_more = n_vocab - len(tokens)
    types = model.metadata["tokenizer.ggml.token_type"]
    model.metadata |= {
        "tokenizer.ggml.tokens": tokens + [f"word{i}" for i in range(n_more)],
        "tokenizer.ggml.scores": -np.arange(n_vocab, dtype=np.float32),
        "tokenizer.ggml.token_type": np.append(types, np.ones(n_more, np.int32)),
    }
    for name in ("token_embd.weight", "output.weight"):
        model.tensors[name] = np.zeros((n_vocab, N_EMBD), np.float16)
    return model.write(path)


def made_up(n_vocab: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2.5, n_vocab)
    logits[random.integers(0, n_vocab, 60)] = 10 + random.exponential(2, 60)
    return logits.astype(np.float32)


def milliseconds(call: Callable[[], object], prepare: Callable[[], object]) -> float:
    prepare()
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def compare(model: pg.Model, settings: dict[str, Any], rounds: int) -> tuple[float, float]:
    sampling = pg.Sampling(**settings, seed=1)
    logits = made_up(model.n_vocab)
    read = (np.arange(N_READ, dtype=np.int32) * 7) % 311
    ours = sampling._sampler(model._open(), N_READ)
    ours.accept(read)
    with UpstreamChain(sampling, model.n_vocab) as theirs:
        theirs.accept(read)
        theirs.offer(logits)
        pairs = [
            (
                milliseconds(lambda: ours.sample(logits), lambda: None),
                milliseconds(theirs.choose, theirs.refill),
            )
            for _ in range(rounds + 5)
        ][5:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def logprobs_milliseconds(logits: npt.NDArray[np.float32], rounds: int) -> float:
    def call() -> object:
        return _core.sampling.logprobs(logits, 5, 5)

    return statistics.median(milliseconds(call, lambda: None) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[200064, 32064])
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    print(describe())
    for n_vocab in arguments.tokens:
        with (
            tempfile.TemporaryDirectory() as folder,
            pg.Model(write_model(Path(folder) / "model.gguf", n_vocab)) as model,
        ):
            print(f"\n{n_vocab} tokens: ms a token, llama.cpp's, times as fast")
            for name, settings in CHAINS.items():
                ours, theirs = compare(model, settings, arguments.rounds)
                print(f"  {name:28} {ours:8.3f} {theirs:8.3f} {theirs / ours:7.1f}")
                if name.startswith("top_k") and n_vocab in TARGETS:
                    print(f"    target: {TARGETS[n_vocab]} ms")
            besides = logprobs_milliseconds(made_up(n_vocab), arguments.rounds)
            print(f"  {'logprobs=5, besides':28} {besides:8.3f}")


if __name__ == "__main__":
    main()
