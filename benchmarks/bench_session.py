"""A session's speed, beside a loop over llama_decode in C++ and stock's llama-bench.

Four programs read and write the same tokens with the same GGUF file, in turn, each in a process of
its own, and who comes first alternates:

* ours: `phiggml bench`, which times Session.eval;
* loop: decode_loop.cpp, compiled here against the libraries of this installation, with a pool of
  threads as ours has one;
* stock: llama-bench of tools/build_stock.sh, a native build of its own with OpenMP;
* run: `phiggml run`, which also samples tokens and makes text of them: the tokens that it writes,
  without the first, which the prompt gives.

Ratios are those of one round; their median counts. For a busy machine, a session of a higher
priority:

    setsid sh -c 'echo -10 > /proc/self/autogroup; exec python benchmarks/bench_session.py ...'

    python benchmarks/bench_session.py MODEL.gguf [--prompts 64,512] [--answer 32] [--threads 2]
        [--rounds 5] [--stock build/stock/build/bin/llama-bench]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from decode_loop import build
from machine import describe

Rates = dict[str, float]  # of each test: tokens/s
GOALS = {"loop": 0.99, "stock": 0.97}
PROMPT = "Tell me about the sea, and what lives in it."


def said(command: list[str | os.PathLike[str]]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ours(arguments: argparse.Namespace) -> Rates:
    command = [sys.executable, "-m", "phiggml", "bench", arguments.model, "--json", "-r", "1"]
    command += ["-p", arguments.prompts, "-n", str(arguments.answer)]
    document = json.loads(said([*command, "--threads", str(arguments.threads)]))
    return {result["name"]: result["tokens_per_second"] for result in document["results"]}


def loop(arguments: argparse.Namespace, program: list[str | os.PathLike[str]]) -> Rates:
    tests = [*(f"pp{n}" for n in arguments.prompts.split(",")), f"tg{arguments.answer}"]
    lines = said([*program, arguments.model, str(arguments.threads), "50", *tests]).splitlines()
    seconds = {name: float(figure) for name, figure, _ in map(str.split, lines)}
    return {name: int(name[2:]) / seconds[name] for name in tests}


def stock(arguments: argparse.Namespace) -> Rates:
    command = [arguments.stock, "-m", arguments.model, "-o", "json", "-r", "1"]
    command += ["-p", arguments.prompts, "-n", str(arguments.answer)]
    results = json.loads(said([*command, "-t", str(arguments.threads)]))
    return {
        f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["avg_ts"] for r in results
    }


def run(arguments: argparse.Namespace) -> Rates:
    command = [sys.executable, "-m", "phiggml", "run", arguments.model, "--raw", "--json"]
    command += ["-p", PROMPT, "-n", str(arguments.answer), "--seed", "1"]
    document = json.loads(said([*command, "--threads", str(arguments.threads)]))
    timings = document["timings"]
    return {f"tg{arguments.answer}": (timings["tokens"] - 1) / timings["seconds"]}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model")
    add("--prompts", default="64,512", help="tokens to read (%(default)s)")
    add("--answer", type=int, default=32, help="tokens to write (%(default)s)")
    add("--threads", type=int, default=2, help="(%(default)s)")
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--stock", type=Path, help="llama-bench")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    print(describe())
    print(f"{arguments.model}, {arguments.threads} threads, {arguments.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        ways = {
            "ours": lambda: ours(arguments),
            "loop": lambda: loop(arguments, program),
            "run": lambda: run(arguments),
        }
        if arguments.stock is not None:
            ways["stock"] = lambda: stock(arguments)
        found: dict[str, list[Rates]] = {way: [] for way in ways}
        names = list(ways)
        for i in range(arguments.rounds):
            for place in range(len(names)):
                way = names[(i + place) % len(names)]
                found[way].append(ways[way]())
                figures = ", ".join(f"{test} {r:.2f}" for test, r in found[way][-1].items())
                print(f"round {i + 1}, {way}: {figures} tokens/s", flush=True)
    print(table(found))


def table(found: dict[str, list[Rates]]) -> str:
    lines = [f"{'test':8}{'by':8}{'tokens/s':>10}{'ours/it':>10}  rounds"]
    for test in found["ours"][0]:
        for way, rounds in found.items():
            if test not in rounds[0]:
                continue
            rate = statistics.median(rates[test] for rates in rounds)
            ratios = [a[test] / b[test] for a, b in zip(found["ours"], rounds, strict=True)]
            ratio = statistics.median(ratios)
            each = " ".join(f"{r:.3f}" for r in ratios)
            goal = GOALS.get(way)
            told = "" if goal is None else f"  {'>=' if ratio >= goal else 'below'} {goal}"
            lines.append(f"{test:8}{way:8}{rate:10.2f}{ratio:10.3f}  {each}{told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
