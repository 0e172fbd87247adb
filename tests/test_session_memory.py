"""Memory comes back: of models and sessions that are closed or dropped, of streams, of errors.

What is measured is a process of its own, after a warm-up and again after many rounds more, once
malloc has given back what it can: all its resident memory, and, more closely, the part of it that
is no file's. What malloc keeps for the next round is no leak, and more one time than another (four
of sixty megabytes here). Each is the least of several looks.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks Linux and glibc")

MOST_GROWTH = 1.05
MOST_TRIMMED_GROWTH = 1.02
# Rounds until malloc has what it keeps; each thread on which a model is loaded may have its own.
WARM_UP = 200

SCRIPT = """
import ctypes, gc, json, sys
import phiggml as pg
path = sys.argv[1]
greedy = pg.Sampling(temperature=0)
{setup}
def turn():
{turn}
def kilobytes(name):
    gc.collect()
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
seen = []
for n in ({warm_up}, {rounds}):
    for _ in range(n):
        turn()
    resident, own = [], []
    for _ in range({looks}):
        turn()
        ctypes.CDLL(None).malloc_trim(0)
        resident.append(kilobytes("VmRSS"))
        own.append(kilobytes("RssAnon"))
    seen.append([min(resident), min(own)])
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Work:
    """What is done in each round, and how often."""

    turn: str
    setup: str = "model = pg.Model(path)"
    warm_up: int = WARM_UP
    rounds: int = 200
    looks: int = 10
    malloc: Mapping[str, str] = field(default_factory=dict)


LOADS = Work(
    """
    with pg.Model(path) as model, pg.Session(model, n_ctx=256) as session:
        session.eval([5, 6, 7])
    """,
    setup="",
)
READ = Work(
    """
    with pg.Model(path, use_mmap=False) as model, pg.Session(model, n_ctx=256, threads=2):
        model.tokenize("What is GGUF?")
    """,
    setup="",
    # Blocks of a model's size go back at once, as those of more than 32 MB always do; and malloc
    # does not trim what threads have of their own.
    malloc={"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"},
)
SESSIONS = Work(
    """
    with pg.Session(model, n_ctx=256, n_seq_max=2) as session:
        session.eval([5, 6, 7], sequence=1)
        session.generate("The dog", max_tokens=2, sampling=greedy)
    """
)
DROPPED = Work(
    """
    session = pg.Session(model, n_ctx=64)
    stream = session.stream("The dog", max_tokens=20, sampling=greedy)
    next(stream)
    kept = [session, stream]
    kept.append(kept)
    del session, stream, kept
    gc.collect()
    """
)
ABANDONED = Work(
    """
    stream = session.stream("The dog", max_tokens=20, sampling=pg.Sampling(seed=1), stop=["zz"])
    next(stream), next(stream)
    """,
    setup="session = pg.Session(path, n_ctx=64)",
    rounds=1000,
)
WRONG = Work(
    """
    for wrong in (lambda: session.eval([5] * 100), lambda: session.eval([-1]),
                  lambda: session.generate("", max_tokens=1), lambda: pg.Session(model, n_ctx=-1),
                  lambda: pg.Session(model, n_ctx=2**26), lambda: pg.Session(sys.executable),
                  lambda: model.tokenize("\\ud800"), lambda: session.generate("x", max_tokens=0)):
        try:
            wrong()
        except pg.PhiggmlError:
            continue
        raise AssertionError
    """,
    setup="model = pg.Model(path); session = pg.Session(model, n_ctx=64)",
    rounds=1000,
)
# 2,000 tokens, in as many answers as it takes: some of them fill the context.
STREAMED = """
    n = 0
    while n < 2000:
        sampling = pg.Sampling(temperature=9, top_k=0, top_p=1, min_p=0, seed=n)
        for chunk in session.stream([5] * 8, max_tokens=1000, sampling=sampling{settings}):
            n += chunk.token is not None
"""
CONTEXT = "session = pg.Session(path, n_ctx=1024)"
QUICK = {"streams that are abandoned": ABANDONED, "errors": WRONG}
SLOW = {
    "models": LOADS,
    "models that are read": READ,
    "sessions": SESSIONS,
    "sessions that are dropped": DROPPED,
}


def check(work: Work, model: Path) -> None:
    script = SCRIPT.format(
        setup=work.setup,
        turn=textwrap.indent(textwrap.dedent(work.turn).strip(), "    "),
        warm_up=work.warm_up,
        rounds=work.rounds,
        looks=work.looks,
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        env={**os.environ, **work.malloc}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (resident, own), (resident_after, own_after) = json.loads(done.stdout)
    assert resident_after <= MOST_GROWTH * resident, done.stdout
    assert own_after <= MOST_TRIMMED_GROWTH * own, done.stdout


@pytest.mark.parametrize("name", QUICK)
def test_rounds(nano_f16: Path, name: str) -> None:
    check(QUICK[name], nano_f16)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_many_rounds(nano_f16: Path, name: str) -> None:
    check(SLOW[name], nano_f16)


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [0, 5])
def test_ten_thousand_tokens(nano_f16: Path, logprobs: int) -> None:
    settings = f", logprobs={logprobs}" if logprobs else ""
    work = Work(STREAMED.format(settings=settings), setup=CONTEXT, warm_up=2, rounds=5, looks=1)
    check(work, nano_f16)


def test_a_leak_is_seen(nano_f16: Path) -> None:
    leak = Work("kept.append(bytearray(8192))", setup="kept = []")
    with pytest.raises(AssertionError, match=r"^\[\[\d+, \d+\], \[\d+, \d+\]\]"):
        check(leak, nano_f16)
