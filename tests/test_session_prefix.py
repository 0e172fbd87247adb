"""What a prompt has in common with the context is not read again, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import DATA, Logits, exact_session, nrmse
from test_session_recurrent import mamba

GREEDY = pg.Sampling(temperature=0)
LINE, WINDOW = 128, 64
# Batches of other sizes add in another order; a prefix of other tokens differs by 0.1 and more.
BOUND = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefix")


def converted(folder: Path, name: str) -> pg.Model:
    pg.convert(DATA / name, folder / f"{name}.gguf", "F32")
    return pg.Model(folder / f"{name}.gguf")


@pytest.fixture(scope="module")
def long_rope(folder: Path) -> pg.Model:
    return converted(folder, "phi3-128k-tiny")


@pytest.fixture(scope="module")
def window(folder: Path) -> pg.Model:
    return converted(folder, "phi3-window-tiny")


def text(n: int, seed: int = 7) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, 200, n).astype(np.int32)


def fresh(model: pg.Model, tokens: npt.NDArray[np.int32]) -> Logits:
    with exact_session(model) as session:
        return session.eval(tokens)


def check(session: pg.Session) -> None:
    """That what comes next is what follows the tokens that the session says it has."""
    held = session.tokens
    next_token = text(1, seed=11)
    truth = fresh(session.model, np.concatenate([held, next_token]))
    assert nrmse(session.eval(next_token), truth) <= BOUND


def answers(model: pg.Model, prompts: list[npt.NDArray[np.int32]]) -> Iterator[pg.Completion]:
    with exact_session(model) as session:
        for prompt in prompts:
            yield session.generate(prompt, max_tokens=6, sampling=GREEDY)
            check(session)


def test_a_shared_beginning_is_not_read_again(long_rope: pg.Model) -> None:
    a, b = text(60), text(40, seed=8)
    prompts = [a, np.concatenate([a, b]), np.concatenate([a[:50], b]), a[:20], b]
    found = list(answers(long_rope, prompts))
    # The last token of a prompt is read again for its logits.
    assert [answer.timings.reused_tokens for answer in found] == [0, 60, 50, 19, 0]
    for prompt, answer in zip(prompts, found, strict=True):
        (alone,) = answers(long_rope, [prompt])
        assert answer.tokens == alone.tokens and alone.timings.reused_tokens == 0


def test_the_same_prompt_again(long_rope: pg.Model) -> None:
    first, again = answers(long_rope, [text(30), text(30)])
    assert (first.tokens, again.timings.reused_tokens) == (again.tokens, 29)


@pytest.mark.parametrize("lengths", [(LINE + 40, LINE - 40), (LINE - 40, LINE + 40)])
def test_on_both_sides_of_the_line(long_rope: pg.Model, lengths: tuple[int, int]) -> None:
    prompts = [text(200)[:n] for n in lengths]
    for prompt, answer in zip(prompts, answers(long_rope, prompts), strict=True):
        (alone,) = answers(long_rope, [prompt])
        assert answer.tokens == alone.tokens


def abandoned(session: pg.Session, prompt: npt.NDArray[np.int32]) -> None:
    stream = session.stream(prompt, max_tokens=9, sampling=GREEDY)
    written = [next(stream).token for _ in range(3)]
    stream.close()  # type: ignore[attr-defined]
    assert session.tokens.tolist() == [*prompt.tolist(), *written[:-1]]


def cancelled(session: pg.Session, prompt: npt.NDArray[np.int32]) -> None:
    stream = session.stream(prompt, max_tokens=9, sampling=GREEDY)
    written = [next(stream).token for _ in range(3)]
    session.cancel()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    assert session.tokens.tolist() == [*prompt.tolist(), *written[:-1]]


def cancelled_at_once(session: pg.Session, prompt: npt.NDArray[np.int32]) -> None:
    stream = session.stream(prompt, max_tokens=9, sampling=GREEDY)
    session.cancel()
    (chunk,) = stream
    assert (chunk.finish_reason, chunk.token, chunk.text) == ("cancelled", None, "")
    assert session.tokens.tolist() == [5, *prompt.tolist()[1:1]]


def failed(session: pg.Session, prompt: npt.NDArray[np.int32]) -> None:
    def fail(tokens: npt.NDArray[np.int32], _logits: Logits) -> Logits:
        if len(tokens) == len(prompt) + 2:
            raise ZeroDivisionError
        return _logits

    with pytest.raises(ZeroDivisionError):
        session.generate(prompt, max_tokens=9, sampling=GREEDY, logits_processor=fail)
    assert session.tokens[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("ended", [abandoned, cancelled, cancelled_at_once, failed])
def test_after_an_answer_that_did_not_end(
    long_rope: pg.Model, ended: Callable[[pg.Session, npt.NDArray[np.int32]], None]
) -> None:
    prompt = text(40)
    prompt[0] = 5
    with exact_session(long_rope) as session:
        session.eval([5])
        ended(session, prompt)
        check(session)
        answer = session.generate(prompt, max_tokens=6, sampling=GREEDY)
        (alone,) = answers(long_rope, [prompt])
        assert answer.tokens == alone.tokens


def test_a_state_that_cannot_go_back(folder: Path) -> None:
    """Nothing is lost where a prompt goes on; a shorter one is read from its beginning."""
    model = pg.Model(mamba().write(folder / "mamba.gguf"))
    a, b = text(20), text(10, seed=8)
    for prompts in ([a, np.concatenate([a, b])], [np.concatenate([a, b]), a], [a, a]):
        found = list(answers(model, prompts))
        for prompt, answer in zip(prompts, found, strict=True):
            (alone,) = answers(model, [prompt])
            assert answer.tokens == alone.tokens


def short_cache(model: pg.Model, **settings: int) -> pg.Session:
    return pg.Session(
        model, n_ctx=2048, type_k="F32", type_v="F32", flash_attn=False, swa_full=False, **settings
    )


@pytest.mark.parametrize("n_kept", [1, 500, 760, 780, 800, 850, 990])
def test_a_short_cache_of_a_window(window: pg.Model, n_kept: int) -> None:
    """Of 1000 tokens, it has the last few hundred; with fewer, all that the window needs."""
    tokens, other = text(1000), text(5, seed=9)
    with short_cache(window, n_batch=128) as session, exact_session(window, n_ctx=2048) as whole:
        session.eval(tokens)
        session.truncate(n_kept)
        assert session.tokens.tolist() == tokens[:n_kept].tolist()
        truth = whole.eval(np.concatenate([tokens[:n_kept], other]))
        assert nrmse(session.eval(other), truth) <= BOUND


def test_a_short_cache_at_any_time(window: pg.Model) -> None:
    random = np.random.default_rng(3)
    with short_cache(window, n_batch=64) as session, exact_session(window, n_ctx=2048) as whole:
        held = text(0)
        for step in range(30):
            more = text(int(random.integers(1, 150)), seed=step)
            found = session.eval(more)
            held = np.concatenate([held, more])
            whole.reset()
            assert nrmse(found, whole.eval(held)) <= BOUND, step
            held = held[: int(random.integers(0, min(len(held), 1500)))]
            session.truncate(len(held))


def test_a_prompt_longer_than_the_context(long_rope: pg.Model) -> None:
    for overflow in ("error", "shift"):
        with pg.Session(long_rope, n_ctx=32, n_seq_max=2, overflow=overflow) as session:  # type: ignore[arg-type]
            session.eval(text(20))
            for call in (session.stream, session.generate):
                with pytest.raises(pg.SessionError, match="33 tokens do not fit into n_ctx = 32"):
                    call(text(33), max_tokens=2)
            with pytest.raises(pg.SessionError, match="33 tokens do not fit into n_ctx = 32"):
                session.generate_batch([text(5), text(33)], max_tokens=2)
            assert session.tokens.tolist() == text(20).tolist()
