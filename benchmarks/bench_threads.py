"""What the threads of sessions cost each other, and the machine once they have nothing to do.

* by poll: decode_loop.cpp, whose pools wait for the next call for as long as ggml's `poll` says,
  before they sleep: tokens/s of one context, of two that are used by turns, and the CPU time of the
  process in the second after the last call. A Session has the poll of 1.
* by threads: a Session of each number of threads, alone and beside processes that compute: what
  waits for a thread that has no core should leave its own to it.
* at once: two sessions in two threads of Python, with all cores each, and with half of them.

    python benchmarks/bench_threads.py MODEL.gguf [--answer 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import phiggml as pg
from decode_loop import build
from machine import describe
from phiggml.cores import available_cores

POLLS = (50, 1, 0)
BUSY = "while True: pass"


def by_poll(arguments: argparse.Namespace) -> None:
    print(f"\n{'poll':>4}{'tokens/s':>11}{'by turns':>11}{'CPU ms in the idle second':>28}")
    tests = [f"tg{arguments.answer}", f"2xtg{arguments.answer}"]
    found: dict[int, list[list[float]]] = {poll: [] for poll in POLLS}
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for _ in range(arguments.rounds):
            for poll in POLLS:
                command = [*program, arguments.model, str(available_cores()), str(poll), *tests]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                alone, turns = (list(map(float, s.split()[1:])) for s in said.splitlines())
                rates = [arguments.answer / alone[0], 2 * arguments.answer / turns[0]]
                found[poll].append([*rates, 1000 * alone[1]])
    for poll, rounds in found.items():
        alone, turns, idle = map(statistics.median, zip(*rounds, strict=True))
        print(f"{poll:4}{alone:11.1f}{turns:11.1f}{idle:28.1f}", flush=True)


@contextmanager
def busy(n_processes: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def by_threads(arguments: argparse.Namespace, model: pg.Model) -> None:
    beside = range(available_cores() + 1)
    print(f"\n{'threads':>7}" + "".join(f"{n:>6} busy" for n in beside) + "   tokens/s")
    for threads in range(1, available_cores() + 1):
        rates = []
        for n in beside:
            with busy(n):
                (speed,) = pg.benchmark_model(
                    model,
                    n_prompt=[],
                    n_gen=[arguments.answer],
                    repetitions=arguments.rounds,
                    threads=threads,
                )
            rates.append(statistics.median(speed.rates))
        print(f"{threads:7}" + "".join(f"{rate:11.1f}" for rate in rates), flush=True)


def write(session: pg.Session, n_tokens: int) -> None:
    for token in range(1, n_tokens + 1):
        session.eval([token])


def seconds_of(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def at_once(arguments: argparse.Namespace, model: pg.Model) -> None:
    print("\ntwo sessions at once    tokens/s of both")
    for threads in sorted({available_cores(), max(available_cores() // 2, 1)}):
        rates = []
        for _ in range(arguments.rounds):
            sessions = [pg.Session(model, n_ctx=arguments.answer, threads=threads) for _ in "ab"]
            workers = [
                threading.Thread(target=write, args=(session, arguments.answer))
                for session in sessions
            ]

            def together(workers: list[threading.Thread] = workers) -> None:
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()

            rates.append(2 * arguments.answer / seconds_of(together))
            for session in sessions:
                session.close()
        print(f"{threads} threads each{statistics.median(rates):24.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--answer", type=int, default=64, help="tokens to write (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args()
    print(describe())
    print(f"{arguments.model}, {arguments.answer} tokens, medians of {arguments.rounds}")
    by_poll(arguments)
    with pg.Model(arguments.model) as model:
        by_threads(arguments, model)
        at_once(arguments, model)


if __name__ == "__main__":
    main()
