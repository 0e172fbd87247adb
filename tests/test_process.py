"""The process lives through its own end, through forks, and through a shortage of threads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PREAMBLE = """
import atexit, os, resource, signal, sys, threading, time
def last():
    pass
atexit.register(lambda: last())  # before phiggml is imported, hence called after its own
import numpy as np
import phiggml as pg
path = sys.argv[1]
def forked(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        work()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0, os.waitpid(pid, 0)
"""
DAEMONS = {
    "eval": "session.reset(); session.eval([5] * 3000)",
    "stream": "list(session.stream('The dog', max_tokens=200))",
    "quantize": "pg.quantize(numbers, 'IQ3_S', threads=1)",
    "load": "pg.Session(path, n_ctx=64, threads=2).eval([5])",
    "progress": "pg.Model(path, progress=lambda _: time.sleep(0.01))",
    "tokenize": "session.model.tokenize('the dog ' * 20000)",
}


def run(code: str, *arguments: object) -> None:
    """Runs code in a child, which must end well and say nothing on stderr."""
    # Python 3.12 on warns of any fork beside threads, which is what some of these are about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning"]
    command += ["-c", PREAMBLE + textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("ending", ["pass", "session.close()", "next(stream)", "del session"])
def test_exit_with_an_open_session(nano_f16: Path, ending: str) -> None:
    run(
        f"""
        session = pg.Session(path, n_ctx=64, threads=2)
        stream = session.stream("The dog", max_tokens=20)
        next(stream)
        {ending}
        """,
        nano_f16,
    )


@pytest.mark.parametrize("work", DAEMONS)
def test_exit_while_a_daemon_thread_works(nano_f16: Path, work: str) -> None:
    # Before there was a shutdown, each of these died of SIGSEGV or SIGABRT in about half the runs.
    for _ in range(3):
        run(
            f"""
            session = pg.Session(path, n_ctx=4096, threads=2)
            numbers = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
            def work():
                while True:
                    {DAEMONS[work]}
            threading.Thread(target=work, daemon=True).start()
            time.sleep(0.2)
            """,
            nano_f16,
        )


def test_what_runs_last_may_still_use_the_library(nano_f16: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    run(
        """
        def last():
            with pg.Session(path, n_ctx=64, threads=2) as session:
                answer = session.generate("The", max_tokens=3)
            with open(sys.argv[2], "w") as file:
                file.write(str(len(answer.tokens)))
        """,
        nano_f16,
        said,
    )
    assert said.read_text() == "3"


@pytest.mark.parametrize("type", ["IQ1_S", "IQ2_XXS", "IQ3_XXS"])
def test_a_child_quantizes_that_was_forked_off_during_the_first_quantizing(type: str) -> None:
    # It waited for ever for the thread that made the kernels' tables in its parent.
    run(
        """
        x = np.random.default_rng(0).standard_normal((4, 256), np.float32)
        def quantize():
            return pg.quantize(x, sys.argv[1], imatrix=np.ones(256, np.float32), threads=1)
        pg.quantize(x, "Q8_0")
        thread = threading.Thread(target=quantize)
        thread.start()
        for _ in range(5):
            time.sleep(0.003)
            forked(quantize)
        thread.join()
        """,
        type,
    )


def test_a_session_does_not_pass_a_fork(nano_f16: Path) -> None:
    # Its threads stay behind: evaluating would wait for them, and freeing them would abort.
    run(
        """
        session = pg.Session(path, n_ctx=64, threads=2)
        session.eval([5, 6])
        def use():
            try:
                session.eval([7])
            except pg.SessionError as error:
                assert "forked" in str(error)
            else:
                os._exit(9)
            session.close()
        def renew():
            with pg.Session(session.model, n_ctx=64, threads=2) as other:
                other.eval([5])
        forked(use)
        forked(renew)
        forked(lambda: None)
        assert session.eval([7]).shape == (session.model.n_vocab,)
        """,
        nano_f16,
    )


def test_a_session_of_one_thread_passes_a_fork(nano_f16: Path) -> None:
    run(
        """
        session = pg.Session(path, n_ctx=64, threads=1)
        session.eval([5, 6])
        forked(lambda: session.eval([7]))
        """,
        nano_f16,
    )


def test_threads_that_do_not_start(nano_f16: Path) -> None:
    # Where ggml asserts that they do.
    run(
        """
        model = pg.Model(path)
        pg.Session(model, n_ctx=64, threads=1).close()
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + (24 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            pg.Session(model, n_ctx=64, threads=64)
        except (pg.SessionError, MemoryError):
            pass
        else:
            os._exit(9)
        """,
        nano_f16,
    )
