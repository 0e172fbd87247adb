"""Many threads at once: what they may share works, what they may not raises. `make tsan` runs
these with the thread sanitizer, too."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from together import PATIENCE, together

GREEDY = pg.Sampling(temperature=0)
OTHER_THREAD = "another thread"
TRIES = 200


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
    "generate_batch": lambda s: s.generate_batch([[5], [6]], max_tokens=2, sampling=GREEDY),
    "score": lambda s: s.score([5, 6]),
    "fork": lambda s: s.fork(0, 0),
    "truncate": lambda s: s.truncate(0),
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


def test_all_that_sessions_do(nano_model: pg.Model) -> None:
    """Each in a thread and a session of its own, on one model."""

    def batch() -> Any:
        with pg.Session(nano_model, n_ctx=64, n_seq_max=2, threads=1) as session:
            prompts = ["The dog", "A cat", "GGUF is"]
            answers = session.generate_batch(prompts, max_tokens=6, sampling=GREEDY)
        return [answer.tokens for answer in answers]

    def vectors() -> Any:
        with pg.Session(nano_model, n_ctx=64, threads=1) as session:
            return session.embed(["The dog", "A cat"]).tobytes()

    def score() -> Any:
        with pg.Session(nano_model, n_ctx=64, threads=1) as session:
            return session.score("The dog went home.")

    def guesses() -> Any:
        with pg.Session(nano_model, n_ctx=128, threads=1) as session:
            draft = pg.PromptLookup()
            prompt = "The dog and the dog and the dog and"
            return session.generate(prompt, max_tokens=9, sampling=GREEDY, draft=draft).text

    def schema() -> Any:
        with pg.Session(nano_model, n_ctx=64, threads=1) as session:
            return session.generate(
                "x", max_tokens=9, sampling=GREEDY, json_schema={"enum": ["a", "b"]}
            ).text

    works = [batch, vectors, score, guesses, schema]
    assert [str(result) for result in together(*works)] == [str(work()) for work in works]


def test_an_event_loop(nano_model: pg.Model) -> None:
    """Answers side by side, one of whose tasks is cancelled half way."""
    prompts = ("The dog", "A cat", "GGUF is")

    async def tokens(session: pg.Session, prompt: str, seen: asyncio.Event) -> list[int | None]:
        found = []
        async for chunk in session.astream(prompt, max_tokens=40, sampling=GREEDY):
            found.append(chunk.token)
            seen.set()
        return found

    async def work(sessions: list[pg.Session]) -> list[Any]:
        seen = [asyncio.Event() for _ in prompts]
        tasks = [
            asyncio.create_task(tokens(*each)) for each in zip(sessions, prompts, seen, strict=True)
        ]
        await seen[1].wait()
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    sessions = [pg.Session(nano_model, n_ctx=64, threads=1) for _ in prompts]
    try:
        results = asyncio.run(work(sessions))
        assert isinstance(results[1], asyncio.CancelledError)
        for i, prompt in enumerate(prompts):
            chunks = list(sessions[i].stream(prompt, max_tokens=40, sampling=GREEDY))
            assert i == 1 or results[i] == [chunk.token for chunk in chunks]
    finally:
        for session in sessions:
            session.close()
