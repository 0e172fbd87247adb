"""Ending what a session does, from other threads and in event loops; users' code that fails."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg

GREEDY = pg.Sampling(temperature=0)


async def tokens_of(chunks: AsyncIterator[pg.Chunk]) -> tuple[int, ...]:
    return tuple([chunk.token async for chunk in chunks if chunk.token is not None])


@pytest.fixture(scope="module")
def truth(nano_model: pg.Model) -> tuple[int, ...]:
    with pg.Session(nano_model, n_ctx=64) as session:
        return session.generate([5, 6, 7], max_tokens=8, sampling=GREEDY).tokens


def endless(model: pg.Model) -> pg.Sampling:
    """Never ends an answer by itself."""
    core = model._open()
    ends = [token for token in range(model.n_vocab) if core.is_end_of_generation(token)]
    return pg.Sampling(temperature=0, logit_bias=dict.fromkeys(ends, -math.inf))


def usable(session: pg.Session, truth: tuple[int, ...]) -> None:
    assert session.generate([5, 6, 7], max_tokens=8, sampling=GREEDY).tokens == truth


def cancelling(session: pg.Session) -> threading.Thread:
    """A thread that cancels until it is done: once might come before there is anything to."""

    def cancel() -> None:
        while not done.is_set():
            session.cancel()
            time.sleep(0.005)

    done = threading.Event()
    thread = threading.Thread(target=cancel, daemon=True)
    thread.done = done  # type: ignore[attr-defined]
    thread.start()
    return thread


def over(thread: threading.Thread) -> None:
    thread.done.set()  # type: ignore[attr-defined]
    thread.join()


@pytest.mark.parametrize("n_prompt", [4000, 16])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_answer(
    nano_model: pg.Model, truth: tuple[int, ...], n_prompt: int, threads: int
) -> None:
    with pg.Session(nano_model, n_ctx=4096, threads=threads) as session:
        for draft in (None, pg.PromptLookup()):
            thread = cancelling(session)
            answer = session.generate(
                [5] * n_prompt, draft=draft, max_tokens=4000, sampling=endless(nano_model)
            )
            over(thread)
            assert answer.finish_reason == "cancelled"
            assert answer.timings.tokens == len(answer.tokens) < 4000
            held = session.tokens.tolist()
            # Cancelled while it reads the prompt, it has what it had before.
            whole = [*[5] * n_prompt, *answer.tokens[:-1]]
            assert held == (whole if answer.tokens else whole[: len(held)])
            usable(session, truth)


def test_no_error_is_logged(nano_model: pg.Model, caplog: pytest.LogCaptureFixture) -> None:
    with pg.Session(nano_model, n_ctx=4096, threads=1) as session:
        caplog.set_level(logging.DEBUG, logger="phiggml")
        for _ in range(5):  # until it comes while a graph is computed
            timer = threading.Timer(0.05, session.cancel)
            timer.start()
            with suppress(pg.SessionError):
                session.eval([5] * 4000)
            timer.join()
            session.reset()
    assert any("failed to compute graph" in message for message in caplog.messages)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@pytest.mark.parametrize("call", ["eval", "score"])
def test_what_gives_no_answer(nano_model: pg.Model, truth: tuple[int, ...], call: str) -> None:
    with pg.Session(nano_model, n_ctx=4096, threads=1) as session:
        session.eval([5, 6])
        thread = cancelling(session)
        with pytest.raises(pg.SessionError, match="another thread has cancelled"):
            session.eval([5] * 4000) if call == "eval" else session.score([5] * 4000)
        over(thread)
        assert session.tokens.tolist() == ([5, 6] if call == "eval" else [])
        usable(session, truth)


def test_a_chat(nano_model: pg.Model, truth: tuple[int, ...]) -> None:
    with pg.Session(nano_model, n_ctx=4096) as session:
        thread = cancelling(session)
        messages = [{"role": "user", "content": "dog " * 500}]
        answer = session.chat(messages, max_tokens=3000, sampling=endless(nano_model))
        over(thread)
        assert answer.finish_reason == "cancelled" and answer.tool_calls == ()
        usable(session, truth)


def test_nothing_is_under_way(nano_model: pg.Model, truth: tuple[int, ...]) -> None:
    with pg.Session(nano_model, n_ctx=64) as session:
        session.cancel()
        usable(session, truth)
        session.cancel()
        session.eval([5])
    session.cancel()


# users' code -------------------------------------------------------------------------------------


PROCESSORS: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "raises": (lambda t, x: 1 // 0, ZeroDivisionError, "zero"),
    "nothing": (lambda t, x: None, pg.InputError, "must return the logits"),
    "shorter": (lambda t, x: x[:-1], pg.InputError, "must return the logits"),
    "a row": (lambda t, x: x[None], pg.InputError, "must return the logits"),
    "rows": (lambda t, x: [[1.0], [1.0, 2.0]], pg.InputError, "must return the logits"),
    "integers": (lambda t, x: x.astype(int), pg.InputError, "must return the logits"),
    "complex": (lambda t, x: x.astype(complex), pg.InputError, "must return the logits"),
    "text": (lambda t, x: "logits", pg.InputError, "must return the logits"),
    "NaN": (lambda t, x: x * np.nan, pg.InputError, "not finite"),
    "one NaN": (lambda t, x: np.where(np.arange(len(x)) == 9, np.nan, x), pg.InputError, "not f"),
    "infinite": (lambda t, x: x + np.inf, pg.InputError, "not finite"),
    "too large": (lambda t, x: np.full(x.shape, 1e300), pg.InputError, "not finite"),
    "nothing allowed": (lambda t, x: np.full_like(x, -np.inf), pg.InputError, "not finite"),
    "fewer arguments": (lambda t: t, TypeError, "argument"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_that_fail(nano_model: pg.Model, truth: tuple[int, ...], name: str) -> None:
    process, error, says = PROCESSORS[name]
    with pg.Session(nano_model, n_ctx=64) as session:
        for draft in (None, pg.PromptLookup(ngram=1)):
            with pytest.raises(error, match=says), np.errstate(all="ignore"):
                session.generate(
                    [5, 6, 7], max_tokens=8, sampling=GREEDY, logits_processor=process, draft=draft
                )
            assert session.tokens.tolist() == [5, 6, 7]
            usable(session, truth)


def test_processors_that_change_the_answer(nano_model: pg.Model) -> None:
    seen: list[list[int]] = []

    def only(tokens: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> Any:
        seen.append(tokens.tolist())
        logits[:] = -np.inf
        logits[100 + len(tokens)] = 1
        return logits.astype(np.float64)[::1]

    with pg.Session(nano_model, n_ctx=64) as session:
        answer = session.generate([5, 6, 7], max_tokens=3, logits_processor=only, logprobs=0)
        assert answer.tokens == (103, 104, 105)
        assert seen == [[5, 6, 7], [5, 6, 7, 103], [5, 6, 7, 103, 104]]
        # The model's own, whatever the processor made of them.
        assert answer.logprobs is not None and answer.logprobs[0].logprob < -1


def test_processors_of_chats(nano_model: pg.Model) -> None:
    def counting(tokens: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> Any:
        logits[:] = -np.inf
        logits[100 + len(tokens) - n_prompt] = 1
        return logits

    messages = [{"role": "user", "content": "Hi"}]
    n_prompt = len(nano_model.tokenize(nano_model.chat_prompt(messages), parse_special=True))
    settings: dict[str, Any] = {"max_tokens": 3, "logits_processor": counting}
    with pg.Session(nano_model, n_ctx=64) as session:
        assert session.chat(messages, **settings).tokens == (100, 101, 102)
        streamed = session.stream_chat(messages, **settings)
        assert [c.token for c in streamed if c.token is not None] == [100, 101, 102]
        waited = tokens_of(session.astream_chat(messages, **settings))
        assert asyncio.run(waited) == (100, 101, 102)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_processor_that_uses_the_session(
    nano_model: pg.Model, truth: tuple[int, ...], logprobs: int | None
) -> None:
    with pg.Session(nano_model, n_ctx=64) as session:

        def use(_tokens: Any, logits: Any) -> Any:
            session.eval([9])
            return logits

        with pytest.raises(pg.SessionError):
            session.generate(
                [5, 6, 7], max_tokens=8, sampling=GREEDY, logits_processor=use, logprobs=logprobs
            )
        usable(session, truth)


# event loops -------------------------------------------------------------------------------------


def test_two_sessions_and_a_clock(nano_model: pg.Model, truth: tuple[int, ...]) -> None:
    """All three go on at once."""

    async def main() -> tuple[Any, ...]:
        ticks = 0

        async def clock() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(clock())
        with pg.Session(nano_model, n_ctx=64) as a, pg.Session(nano_model, n_ctx=64) as b:
            settings: dict[str, Any] = {"max_tokens": 8, "sampling": GREEDY}
            found = await asyncio.gather(
                tokens_of(a.astream([5, 6, 7], **settings)),
                tokens_of(b.astream([5, 6, 7], **settings, draft=pg.PromptLookup())),
            )
        ticking.cancel()
        return *found, ticks

    *found, ticks = asyncio.run(main())
    assert found == [truth, truth] and ticks > 8


@pytest.mark.parametrize("n_prompt", [4000, 16])
@pytest.mark.parametrize("again", [False, True])
def test_a_task_is_cancelled(
    nano_model: pg.Model,
    truth: tuple[int, ...],
    n_prompt: int,
    again: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        with pg.Session(nano_model, n_ctx=4096, threads=1) as session:
            chunks = session.astream([5] * n_prompt, max_tokens=4000, sampling=endless(nano_model))
            task = asyncio.create_task(tokens_of(chunks))
            await asyncio.sleep(0.02)
            task.cancel()
            if again:
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            usable(session, truth)

    asyncio.run(main())
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("n_prompt", [4000, 16])
def test_an_awaited_answer(nano_model: pg.Model, truth: tuple[int, ...], n_prompt: int) -> None:
    messages = [{"role": "user", "content": "dog " * (n_prompt // 4)}]
    long: dict[str, Any] = {"max_tokens": 2000, "sampling": endless(nano_model)}

    async def main() -> None:
        with pg.Session(nano_model, n_ctx=4096, threads=1) as session:
            for answer in (
                session.agenerate([5] * n_prompt, **long),
                session.achat(messages, **long),
            ):
                task = asyncio.create_task(answer)
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                usable(session, truth)
            found = await session.agenerate([5, 6, 7], max_tokens=8, sampling=GREEDY)
            assert found.tokens == truth and found.finish_reason == "length"
            messages[0]["content"] = "What is GGUF?"
            found = await session.achat(messages, max_tokens=20, sampling=GREEDY)
            wanted = session.chat(messages, max_tokens=20, sampling=GREEDY)
            assert (found.text, found.tokens) == (wanted.text, wanted.tokens)
            with pytest.raises(pg.InputError):
                await session.agenerate([5], max_tokens=0)

    asyncio.run(main())


def test_a_stream_is_left(nano_model: pg.Model, truth: tuple[int, ...]) -> None:
    async def main() -> None:
        with pg.Session(nano_model, n_ctx=64) as session:
            chunks = session.astream([5, 6, 7], max_tokens=30, sampling=GREEDY)
            async for chunk in chunks:
                assert chunk.token == truth[0]
                break
            await chunks.aclose()  # type: ignore[attr-defined]
            usable(session, truth)
            messages = [{"role": "user", "content": "What is GGUF?"}]
            wanted = session.chat(messages, max_tokens=20, sampling=GREEDY)
            chat = session.astream_chat(messages, max_tokens=20, sampling=GREEDY)
            assert await tokens_of(chat) == wanted.tokens

    asyncio.run(main())


def test_errors_reach_the_task(nano_model: pg.Model, truth: tuple[int, ...]) -> None:
    async def main() -> None:
        with pg.Session(nano_model, n_ctx=64) as session:
            with pytest.raises(pg.InputError):
                session.astream([5], max_tokens=0)
            first = session.astream([5, 6, 7], max_tokens=8)
            second = session.astream([5, 6, 7], max_tokens=8, sampling=GREEDY)
            with pytest.raises(pg.SessionError, match="meanwhile"):
                await tokens_of(first)
            assert await tokens_of(second) == truth
            failing = session.astream([5], max_tokens=8, logits_processor=lambda t, x: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await tokens_of(failing)
            usable(session, truth)

    asyncio.run(main())


def test_another_thread_is_refused_and_does_no_harm(
    nano_model: pg.Model, truth: tuple[int, ...]
) -> None:
    """Who is inside goes on, whatever the other one calls."""
    calls: list[Callable[[pg.Session], object]] = [
        lambda s: s.eval([5]),
        lambda s: s.score([5, 6]),
        lambda s: s.fork(0, 1),
        lambda s: s.truncate(0),
        lambda s: s.reset(),
        lambda s: s.reset(sequence=1),
        lambda s: s.tokens,
        lambda s: s.sequence_tokens(1),
        lambda s: s.stream([5], max_tokens=2),
        lambda s: s.generate([5], max_tokens=2),
        lambda s: s.generate_batch([[5], [6]], max_tokens=2),
        lambda s: s.set_lora([]),
        lambda s: s.set_control_vector(None),
        lambda s: s.embed("a dog"),
        lambda s: s.close(),
    ]
    with pg.Session(nano_model, n_ctx=8192, n_seq_max=2, threads=1) as session:
        inside = threading.Event()
        found: list[Any] = []

        def work() -> None:
            inside.set()
            try:
                found.append(session.eval([5] * 8000).shape)
            except pg.SessionError as error:
                found.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        time.sleep(0.1)
        for call in calls:
            with pytest.raises(pg.SessionError, match="another thread"):
                call(session)
        assert "another thread" in repr(session)
        session.cancel()
        thread.join()
        assert found == ["session: another thread has cancelled this call."]
        usable(session, truth)
