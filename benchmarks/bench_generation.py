"""What a session saves: prefixes that are not read again, many prompts together, and guesses.

Three comparisons with one model, each of a session with itself:

* prefix: the time to the first token of a prompt whose first 500 tokens the context holds, beside
  the same prompt read whole;
* batch: tokens/s of generate_batch with 8 prompts, beside generate with one after the other; no
  answer ends before it has all its tokens;
* lookup: tokens/s with PromptLookup on a chat that repeats itself (a question, the model's answer,
  and the question again), beside without, and whether the tokens are the same. They must be with an
  F32 file and F32 cache (--type-k F32).

    python benchmarks/bench_generation.py MODEL.gguf [--tokens 64] [--rounds 3] [--type-k F16]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

import phiggml as pg
from machine import describe

GREEDY = pg.Sampling(temperature=0)
N_PREFIX = 500
N_REST = 12
N_PROMPTS = 8
N_PROMPT = 24
QUESTION = {"role": "user", "content": "What is GGUF?"}

Ids = npt.NDArray[np.int32]


def random_ids(model: pg.Model, rng: np.random.Generator, n: int) -> Ids:
    return rng.integers(100, model.n_vocab - 100, n).astype(np.int32)


def prefix(session: pg.Session, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds to the first token: whole, and with the first 500 tokens in the context."""
    shared = random_ids(session.model, rng, N_PREFIX)
    prompts = [np.concatenate([shared, random_ids(session.model, rng, N_REST)]) for _ in range(2)]
    session.reset()
    timings = [
        session.generate(prompt, max_tokens=1, sampling=GREEDY).timings for prompt in prompts
    ]
    assert [t.reused_tokens for t in timings] == [0, N_PREFIX]
    return timings[0].prompt_seconds, timings[1].prompt_seconds


def rate(write: Callable[[], list[pg.Completion]]) -> tuple[float, list[pg.Completion]]:
    start = time.perf_counter()
    answers = write()
    seconds = time.perf_counter() - start
    return sum(len(answer.tokens) for answer in answers) / seconds, answers


def batch(session: pg.Session, rng: np.random.Generator, n: int) -> tuple[float, float]:
    """Tokens/s: one after the other, and together."""
    prompts = [random_ids(session.model, rng, N_PROMPT) for _ in range(N_PROMPTS)]
    endless = replace(GREEDY, logit_bias=dict.fromkeys(ends(session.model), -math.inf))
    session.reset()
    alone, one_by_one = rate(
        lambda: [session.generate(p, max_tokens=n, sampling=endless) for p in prompts]
    )
    session.reset()
    together, batch = rate(lambda: session.generate_batch(prompts, max_tokens=n, sampling=endless))
    assert all(len(answer.tokens) == n for answer in one_by_one + batch)
    return alone, together


def ends(model: pg.Model) -> list[int]:
    """The tokens that end an answer."""
    core = model._open()
    return [token for token in range(model.n_vocab) if core.is_end_of_generation(token)]


def lookup(session: pg.Session, n: int) -> tuple[float, float, bool]:
    """Tokens/s: without guesses, and with; and whether the tokens are the same."""
    first = session.chat([QUESTION], max_tokens=n, sampling=GREEDY)
    prompt = session.model.chat_prompt([QUESTION, first.message, QUESTION])
    rates, tokens = [], []
    for draft in (None, pg.PromptLookup()):
        session.reset()
        answer = session.generate(prompt, max_tokens=n, sampling=GREEDY, draft=draft)
        rates.append(answer.timings.tokens_per_second)
        tokens.append(answer.tokens)
    return rates[0], rates[1], tokens[0] == tokens[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--type-k", default="F16", help="of both caches")
    arguments = parser.parse_args()
    print(describe())
    with pg.Model(arguments.model) as model:
        print(f"{model!r}, KV cache {arguments.type_k}")
        rng = np.random.default_rng(0)
        cache = {"type_k": arguments.type_k, "type_v": arguments.type_k}
        ratios: dict[str, list[float]] = {"prefix": [], "batch": [], "lookup": []}
        for _ in range(arguments.rounds):
            with pg.Session(model, n_ctx=1024, n_seq_max=N_PROMPTS, **cache) as session:
                whole, rest = prefix(session, rng)
                alone, together = batch(session, rng, arguments.tokens)
            with pg.Session(model, n_ctx=1024, **cache) as session:
                without, guessed, same = lookup(session, arguments.tokens)
            ratios["prefix"].append(rest / whole)
            ratios["batch"].append(together / alone)
            ratios["lookup"].append(guessed / without)
            print(
                f"first token: {whole:.3f} s whole, {rest:.4f} s with {N_PREFIX} of "
                f"{N_PREFIX + N_REST} tokens in the context: {rest / whole:.3f}"
            )
            print(
                f"{N_PROMPTS} prompts: {alone:.1f} tokens/s alone, {together:.1f} together: "
                f"{together / alone:.2f}"
            )
            print(
                f"repeated text: {without:.1f} tokens/s, {guessed:.1f} with guesses: "
                f"{guessed / without:.2f}, {'the same' if same else 'OTHER'} tokens"
            )
        for name, figures in ratios.items():
            print(f"{name}: median {statistics.median(figures):.3f}")


if __name__ == "__main__":
    main()
