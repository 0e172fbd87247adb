"""Many threads at once: what they may share works, what they may not raises. `make tsan` runs
these with the thread sanitizer, too."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from phiggml.runtime import forward_log

GREEDY = pg.Sampling(temperature=0)
OTHER_THREAD = "another thread"
# A thread that is not done by then hangs.
PATIENCE = 60.0
TRIES = 200


def together(*works: Callable[[], Any]) -> list[Any]:
    """Does all works, each in a thread of its own, begun at one time.

    Returns:
        What each gave, or the error that it raised.
    """
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def do(i: int) -> None:
        barrier.wait()
        try:
            results[i] = works[i]()
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            results[i] = error

    threads = [threading.Thread(target=do, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)
    return results


def run(code: str, *arguments: object) -> str:
    """What a child prints, which must end well and say nothing on stderr."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Busy:
    """A session that a thread of its own uses without end, but for moments."""

    def __init__(self, session: pg.Session) -> None:
        self.session = session
        self.unexpected: list[BaseException] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._done.is_set():
            try:
                self.session.reset()
                self.session.eval([5] * 400)
            except pg.SessionError as error:
                if OTHER_THREAD not in str(error):
                    self.unexpected.append(error)
                    return

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


# one session -------------------------------------------------------------------------------------


VERBS: dict[str, Callable[[pg.Session], object]] = {
    "eval": lambda s: s.eval([5]),
    "eval all": lambda s: s.eval([5, 6], logits="all"),
    "tokens": lambda s: s.tokens,
    "sequence_tokens": lambda s: s.sequence_tokens(0),
    "reset": lambda s: s.reset(),
    "reset one": lambda s: s.reset(sequence=0),
    "generate": lambda s: s.generate([5, 6], max_tokens=2, sampling=GREEDY),
    "stream": lambda s: list(s.stream([5, 6], max_tokens=2, sampling=GREEDY)),
    "chat": lambda s: s.chat([{"role": "user", "content": "Hi"}], max_tokens=2),
}


def refused(session: pg.Session, verb: Callable[[pg.Session], object]) -> bool:
    """Whether it was, in one of many tries: each may come in a moment in which nobody is inside."""
    for _ in range(TRIES):
        time.sleep(0.002)
        try:
            verb(session)
        except pg.SessionError as error:
            return OTHER_THREAD in str(error)
    return False


def test_what_another_thread_uses_is_refused(nano_model: pg.Model) -> None:
    with pg.Session(nano_model, n_ctx=512, threads=1) as session:
        with Busy(session) as busy:
            assert [name for name, verb in VERBS.items() if not refused(session, verb)] == []
        assert busy.unexpected == []
        session.reset()
        assert len(session.eval([5])) == nano_model.n_vocab


def test_what_another_thread_uses_is_not_closed(nano_model: pg.Model) -> None:
    for _ in range(TRIES):
        session = pg.Session(nano_model, n_ctx=512, threads=1)
        with Busy(session):
            was_refused = refused(session, pg.Session.close)
        session.close()
        if was_refused:
            return
    raise AssertionError("it was closed each time")


def test_what_another_thread_uses_can_be_shown(nano_model: pg.Model) -> None:
    with pg.Session(nano_model, n_ctx=512, threads=1) as session, Busy(session) as busy:
        for _ in range(TRIES):
            assert repr(session).startswith("<Session") and session.n_ctx == 512
    assert busy.unexpected == []


def test_two_threads_that_close_it(nano_model: pg.Model) -> None:
    for i in range(10):
        session = pg.Session(nano_model, n_ctx=64, threads=1 + i % 2)
        session.eval([5])
        for result in together(session.close, session.close, lambda: repr(session)):  # noqa: B023
            # One of them may find the other at it.
            assert result is None or isinstance(result, str) or OTHER_THREAD in str(result)
        session.close()
        assert "closed" in repr(session)


def test_a_stream_goes_from_thread_to_thread(nano_model: pg.Model) -> None:
    with pg.Session(nano_model, n_ctx=64) as session:
        text = session.generate("The dog", max_tokens=9, sampling=GREEDY).text
        stream = session.stream("The dog", max_tokens=9, sampling=GREEDY)
        pieces = []
        for _ in range(9):
            [chunk] = together(lambda: next(stream))
            pieces.append(chunk.text)
        assert "".join(pieces) == text


def test_a_stream_that_two_threads_read(nano_model: pg.Model) -> None:
    """Python itself refuses the second, or the session does; neither gets another's tokens."""
    with pg.Session(nano_model, n_ctx=64) as session:
        tokens = session.generate("The dog", max_tokens=20, sampling=GREEDY).tokens
        stream = session.stream("The dog", max_tokens=20, sampling=GREEDY)
        got: list[int] = []

        def read() -> None:
            got.extend(chunk.token for chunk in stream if chunk.token is not None)

        for result in together(read, read):
            assert result is None or isinstance(result, (ValueError, pg.SessionError))
        assert Counter(got) == Counter(tokens[: len(got)])


def test_it_is_dropped_where_nobody_expects_it(nano_model: pg.Model) -> None:
    """By the collector, in a thread that never used it, half way through a stream."""
    for threads in (1, 2):
        session = pg.Session(nano_model, n_ctx=64, threads=threads)
        stream = session.stream("The dog", max_tokens=20, sampling=GREEDY)
        next(stream)
        cycle: list[Any] = [session, stream]
        cycle.append(cycle)
        del session, stream, cycle
        together(gc.collect, lambda: pg.Session(nano_model, n_ctx=64).close())


@pytest.mark.parametrize("work", ["eval", "generate"])
def test_cancelled_by_another_thread(nano_model: pg.Model, work: str) -> None:
    with pg.Session(nano_model, n_ctx=4096, threads=1) as session:
        ended = threading.Event()

        def use() -> object:
            try:
                while True:
                    session.reset()
                    if work == "eval":
                        session.eval([5] * 4000)
                    elif session.generate([5], max_tokens=4000).finish_reason == "cancelled":
                        return None
            except pg.SessionError as error:
                return str(error)
            finally:
                ended.set()

        def cancel() -> None:
            while not ended.wait(0.02):  # in between two calls there is nothing to cancel
                session.cancel()

        for _ in range(3):
            said, _nothing = together(use, cancel)
            assert said is None if work == "generate" else "cancelled" in said
            ended.clear()
        session.reset()
        assert len(session.eval([5])) == nano_model.n_vocab


# one model ---------------------------------------------------------------------------------------


def test_sessions_with_threads_of_their_own(nano_model: pg.Model) -> None:
    def logits(threads: int, token: int) -> Any:
        with pg.Session(nano_model, n_ctx=64, threads=threads) as session:
            rows = session.eval([token, token + 1, token + 2], logits="all")
            answer = session.generate([token, 6, 7], max_tokens=2, sampling=GREEDY)
        return rows, answer.tokens

    # No more of them: threads of ggml spin while they wait for one that has no core.
    works = [lambda n=n, t=t: logits(n, t) for n, t in ((1, 5), (2, 50), (2, 500))]
    for result, work in zip(together(*works), works, strict=True):
        rows, tokens = work()
        assert np.array_equal(result[0], rows) and result[1] == tokens


def test_the_model_is_closed_while_sessions_work(nano_f16: Path) -> None:
    model = pg.Model(nano_f16)
    sessions = [pg.Session(model, n_ctx=512, threads=n) for n in (1, 2)]
    truth = [session.eval([5] * 300, logits="all") for session in sessions]

    def again(session: pg.Session) -> Any:
        session.reset()
        return session.eval([5] * 300, logits="all")

    *rows, closed = together(*[lambda s=s: again(s) for s in sessions], model.close)
    assert closed is None
    assert all(np.array_equal(found, rows) for found, rows in zip(rows, truth, strict=True))
    with pytest.raises(pg.SessionError, match="closed"):
        model.tokenize("x")
    with pytest.raises(pg.SessionError, match="closed"):
        sessions[0].generate("x", max_tokens=1)
    del model
    assert np.array_equal(again(sessions[0]), truth[0])
    assert together(*[session.close for session in sessions]) == [None, None]


def test_models_come_and_go(nano_f16: Path, nano_q4: Path) -> None:
    def load(path: Path) -> Any:
        owner: set[int] = set()
        for use_mmap in (True, False):
            with pg.Model(
                path, use_mmap=use_mmap, progress=lambda _: owner.add(threading.get_ident())
            ) as model:
                ids = model.tokenize("What is GGUF?")
                assert model.placement and model.metadata["general.architecture"] == "phi3"
        assert owner == {threading.get_ident()}
        return ids.tolist()

    results = together(*[lambda p=p: load(p) for p in (nano_f16, nano_q4, nano_f16)])
    assert results[0] == results[1] == results[2] and len(results[0]) > 3, results


def test_tokenizers(nano_model: pg.Model) -> None:
    texts = [f"The {word} went {word * 40} up. é🙂\n" * 20 for word in ("cat", "Dog", "é", " ")]
    truth = [nano_model.tokenize(text).tolist() for text in texts]

    def tokenize(text: str) -> Any:
        for _ in range(5):
            ids = nano_model.tokenize(text)
            back = nano_model.detokenize(ids)
        return ids.tolist(), back

    for (ids, back), expected in zip(
        together(*[lambda t=t: tokenize(t) for t in texts]), truth, strict=True
    ):
        assert ids == expected and back == nano_model.detokenize(expected)


# files and arrays --------------------------------------------------------------------------------


def test_quantizing_models(nano_f16: Path, tmp_path: Path) -> None:
    def quantize(type: str, i: int) -> bytes:
        out = tmp_path / f"{type}-{i}.gguf"
        pg.quantize_model(nano_f16, out, type, threads=3, progress=lambda _: None)
        return out.read_bytes()

    kinds = ("Q4_K_M", "Q8_0", "Q4_K_M")
    first, other, second = together(*[lambda t=t, i=i: quantize(t, i) for i, t in enumerate(kinds)])
    assert first == second == quantize("Q4_K_M", 9) and other == quantize("Q8_0", 9)


def test_one_target(nano_f16: Path, tmp_path: Path) -> None:
    """One of them writes it; the other finds that somebody is at it, or that it is there."""
    out = tmp_path / "out.gguf"
    results = together(*[lambda: pg.quantize_model(nano_f16, out, "Q8_0", threads=2)] * 2)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(errors) <= 1 and all(isinstance(error, OSError) for error in errors), errors
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]


def test_quantizing_arrays() -> None:
    """The first of each type makes tables that the others share."""
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    weights = np.ones(512, np.float32)
    types = ("Q4_K", "IQ4_XS", "IQ3_XXS", "IQ1_M", "TQ1_0")

    def quantize() -> list[bytes]:
        arrays = [pg.quantize(x, type, imatrix=weights, threads=2) for type in types]
        return [a.data.tobytes() + a.dequantize().tobytes() for a in arrays]

    first, *others = together(*[quantize] * 3)
    assert len(first) == len(types) and all(other == first for other in others)


def test_a_file_is_closed_while_others_read_it(nano_f16: Path) -> None:
    with pg.GGUFFile(nano_f16) as file:
        truth = {name: tensor.dequantize().sum() for name, tensor in file.tensors.items()}
    for _ in range(5):
        file = pg.GGUFFile(nano_f16)
        tensors = dict(file.tensors)

        def read(file: pg.GGUFFile = file, tensors: Any = tensors) -> None:
            for name, tensor in tensors.items():
                assert tensor.dequantize().sum() == truth[name]
            list(file.metadata.items())

        for result in together(read, read, file.close):
            assert result is None or isinstance(result, pg.InputError), result


# the process -------------------------------------------------------------------------------------


def test_each_hears_of_its_own_faults(tmp_path: Path, nano_f16: Path) -> None:
    names = ("catlike", "doglike")
    for name in names:
        with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(tmp_path / name) as writer:
            for key in file.metadata:
                writer.metadata[key] = file.metadata.exact(key)
            writer.metadata["tokenizer.ggml.pre"] = name
            writer.metadata["tokenizer.ggml.model"] = "gpt2"
            writer.metadata["tokenizer.ggml.merges"] = ["a b"]
            for tensor in file.tensors.values():
                writer.add_tensor(tensor.name, tensor.data, tensor.type)

    def load(name: str) -> set[str]:
        said = set()
        for _ in range(20):
            with pytest.raises(pg.FormatError) as error:
                pg.Model(tmp_path / name)
            said.add(str(error.value))
        return said

    for result, name in zip(together(*[lambda n=n: load(n) for n in names]), names, strict=True):
        [sentence] = result
        assert f"'{name}'" in sentence and "/proc/" not in sentence


def test_the_log(nano_f16: Path) -> None:
    """Each line comes once, whoever takes it; a handler may use the library."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if len(lines) % 100 == 0:
                pg.devices()

    logger, handler = logging.getLogger("phiggml"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            forward_log()
            time.sleep(0.001)

    def load() -> None:
        for _ in range(3):
            pg.Model(nano_f16).close()

    def named() -> int:
        return sum("general.architecture" in line for line in lines)

    def load_all() -> list[Any]:
        try:
            return together(load, load)
        finally:
            done.set()

    try:
        pg.Model(nano_f16).close()
        n_each = named()
        assert n_each > 0
        assert together(take, take, load_all) == [None, None, [None, None]]
        forward_log()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert named() == 7 * n_each


def test_backends_are_loaded_once() -> None:
    code = """
import threading
import phiggml as pg
found = []
barrier = threading.Barrier(6)
def ask():
    barrier.wait()
    found.append([device.name for device in pg.devices()])
threads = [threading.Thread(target=ask) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(found), len(found[0]) == len(set(found[0])), all(names == found[0] for names in found))
"""
    assert run(code) == "6 True True\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_of_a_fork_during_a_call(nano_f16: Path, threads: int) -> None:
    """It has the session that another thread was using, and may do nothing with it but close it."""
    code = """
import os, signal, sys, threading, time
import phiggml as pg
model = pg.Model(sys.argv[1])
session = pg.Session(model, n_ctx=4096, threads=int(sys.argv[2]))
done = threading.Event()
def work():
    while not done.is_set():
        session.reset()
        session.eval([5] * 300)
thread = threading.Thread(target=work)
thread.start()
time.sleep(0.05)
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            session.eval([5])
            os._exit(7)
        except pg.SessionError:
            pass
        with pg.Session(model, n_ctx=64, threads=1) as other:
            assert len(other.eval([5])) == model.n_vocab
        del session, other
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
session.close()
"""
    run(code, nano_f16, threads)
