"""Sessions: the context, generation, streams, and two threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import phiggml as pg

GREEDY = pg.Sampling(temperature=0)


@pytest.fixture
def session(nano_model: pg.Model) -> Iterator[pg.Session]:
    with pg.Session(nano_model, n_ctx=256) as session:
        yield session


def test_eval_appends(session: pg.Session) -> None:
    first = session.eval([5, 6, 7])
    assert first.dtype == np.float32 and first.shape == (session.model.n_vocab,)
    session.eval(np.array([8, 9]))
    assert session.tokens.tolist() == [5, 6, 7, 8, 9]
    session.reset()
    assert session.tokens.tolist() == []
    assert np.array_equal(session.eval([5, 6, 7]), first)


def test_logits_are_copies(session: pg.Session) -> None:
    first = session.eval([5, 6, 7])
    kept = first.copy()
    session.eval([8])
    first += 0  # writable, and nobody else's
    assert np.array_equal(first, kept)


def test_all_logits_end_with_the_last(session: pg.Session) -> None:
    rows = session.eval([5, 6, 7, 8], logits="all")
    session.reset()
    assert rows.shape == (4, session.model.n_vocab)
    assert np.array_equal(rows[-1], session.eval([5, 6, 7, 8]))


def test_greedy_generation_is_argmax(session: pg.Session) -> None:
    prompt = session.model.tokenize("Once there was")
    answer = session.generate(prompt, max_tokens=8, sampling=GREEDY)
    session.reset()
    logits = session.eval(prompt)
    for token in answer.tokens:
        assert token == int(np.argmax(logits))
        logits = session.eval([token])


def test_generate_forgets_what_was_before(session: pg.Session) -> None:
    first = session.generate("The dog", max_tokens=5, sampling=GREEDY)
    session.eval([5, 6, 7])
    assert session.generate("The dog", max_tokens=5, sampling=GREEDY).tokens == first.tokens


def test_stream_joins_to_generate(session: pg.Session) -> None:
    whole = session.generate("The dog", max_tokens=12, sampling=GREEDY)
    chunks = list(session.stream("The dog", max_tokens=12, sampling=GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    assert chunks[-1].finish_reason == whole.finish_reason == "length"
    assert whole.timings.tokens == len(whole.tokens) == 12


def test_seed_repeats(session: pg.Session) -> None:
    sampling = pg.Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    first = session.generate("The", max_tokens=12, sampling=sampling)
    again = session.generate("The", max_tokens=12, sampling=sampling)
    other = session.generate(
        "The", max_tokens=12, sampling=pg.Sampling(temperature=2.0, top_k=0, min_p=0.0, seed=8)
    )
    assert first.tokens == again.tokens != other.tokens


def test_stop_text_ends_and_is_left_out(session: pg.Session) -> None:
    whole = session.generate("The dog", max_tokens=20, sampling=GREEDY).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    answer = session.generate("The dog", max_tokens=20, sampling=GREEDY, stop=stop)
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_chat_ends_by_itself(session: pg.Session, questions: list[dict[str, str]]) -> None:
    message = {"role": "user", "content": questions[0]["question"]}
    answer = session.chat([message], max_tokens=120, sampling=GREEDY)
    assert answer.finish_reason == "stop"
    assert answer.text == questions[0]["answer"]


def test_context_full(session: pg.Session) -> None:
    session.eval([5] * 250)
    with pytest.raises(pg.SessionError, match=r"holds 250 of n_ctx = 256 .* no room for 7 more"):
        session.eval([5] * 7)
    assert len(session.tokens) == 250
    session.eval([5] * 6)
    with pytest.raises(pg.SessionError, match="n_ctx = 256"):
        session.generate([5] * 250, max_tokens=100, sampling=GREEDY)
    session.reset()
    with pytest.raises(pg.SessionError, match="257 tokens do not fit into n_ctx = 256"):
        session.eval([5] * 257)


def test_sampling_of_another_kind(session: pg.Session) -> None:
    with pytest.raises(pg.InputError, match="must be a Sampling"):
        session.stream("x", max_tokens=1, sampling={"temperature": 0})  # type: ignore[arg-type]


def test_use_after_close(nano_model: pg.Model) -> None:
    session = pg.Session(nano_model, n_ctx=64)
    session.close()
    session.close()
    with pytest.raises(pg.SessionError, match="closed"):
        session.eval([1])
    with pytest.raises(pg.SessionError, match="closed"):
        session.generate("x", max_tokens=1)
    assert "closed" in repr(session)


def test_close_during_a_stream(nano_model: pg.Model) -> None:
    session = pg.Session(nano_model, n_ctx=64)
    stream = session.stream("The dog", max_tokens=20, sampling=GREEDY)
    next(stream)
    session.close()
    with pytest.raises(pg.SessionError):
        next(stream)


def test_other_use_during_a_stream(session: pg.Session) -> None:
    stream = session.stream("The dog", max_tokens=20, sampling=GREEDY)
    next(stream)
    session.eval([5])
    with pytest.raises(pg.SessionError, match="meanwhile"):
        next(stream)


def test_other_use_before_a_stream_is_read(session: pg.Session) -> None:
    first = session.stream("The dog", max_tokens=3, sampling=GREEDY)
    second = session.stream("The cat", max_tokens=3, sampling=GREEDY)
    with pytest.raises(pg.SessionError, match="meanwhile"):
        next(first)
    assert len(list(second)) == 3
    third = session.stream("The cat", max_tokens=3, sampling=GREEDY)
    session.eval([5])
    with pytest.raises(pg.SessionError, match="meanwhile"):
        next(third)


def test_two_threads_at_once(nano_model: pg.Model) -> None:
    errors: list[BaseException] = []
    with pg.Session(nano_model, n_ctx=4096) as session:
        barrier = threading.Barrier(2)

        def work() -> None:
            barrier.wait()
            try:
                for _ in range(20):
                    session.eval([5] * 100)
            except pg.SessionError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert any("another thread" in str(error) for error in errors)
        assert len(session.tokens) % 100 == 0


def test_sessions_share_a_model_from_many_threads(nano_model: pg.Model) -> None:
    results: list[tuple[int, ...]] = []

    def work() -> None:
        with pg.Session(nano_model, n_ctx=128, threads=1) as session:
            results.append(session.generate("The dog", max_tokens=8, sampling=GREEDY).tokens)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1


def test_session_loads_and_closes_its_own_model(nano_f16: object) -> None:
    with pg.Session(str(nano_f16), n_ctx=64) as session:
        model = session.model
        assert session.eval([1]).shape == (model.n_vocab,)
    with pytest.raises(pg.SessionError, match="closed"):
        model.tokenize("x")


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0"])
def test_cache_types(nano_model: pg.Model, type: str) -> None:
    prompt = nano_model.tokenize("The dog went to the")
    with pg.Session(nano_model, n_ctx=64, type_k="F32", type_v="F32") as exact:
        truth = exact.eval(prompt)
    with pg.Session(nano_model, n_ctx=64, type_k=type, type_v=type) as session:
        logits = session.eval(prompt)
    # Q8_0 keeps 8 bits of keys and values, BF16 the 8 of its mantissa.
    assert np.sqrt(np.mean((logits - truth) ** 2) / np.mean(truth**2)) < 0.05


def test_a_window_warns_of_nothing(nano_model: pg.Model, caplog: pytest.LogCaptureFixture) -> None:
    """phi3-nano has one of 2047 tokens, whose cache is of full size by our own choice."""
    with caplog.at_level(logging.DEBUG, logger="phiggml"), pg.Session(nano_model, n_ctx=64):
        pass
    lines = [record for record in caplog.records if "full-size SWA cache" in record.message]
    assert [record.levelno for record in lines] == [logging.DEBUG]
