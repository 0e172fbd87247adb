"""Guesses change how an answer is computed, and nothing of what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import DATA, exact_session
from small_models import small_model
from test_session_recurrent import mamba

GREEDY = pg.Sampling(temperature=0)
LINE = 128
REPEATED = "The dog sat. The cat sat. The dog sat. The cat"


@pytest.fixture(scope="module")
def nano(nano_f32: Path) -> pg.Model:
    return pg.Model(nano_f32)


@pytest.fixture(scope="module")
def drafts(nano: pg.Model, nano_q4: Path) -> Iterator[dict[str, pg.Draft | pg.PromptLookup]]:
    """One that is always right, one that is sometimes wrong, and lookups that often are."""
    with pg.Draft(nano, n=3) as same, pg.Draft(nano_q4, n=5) as other:
        yield {
            "same": same,
            "other": other,
            "lookup": pg.PromptLookup(),
            "careless": pg.PromptLookup(n=20, ngram=1),
        }


DRAFTS = pytest.mark.parametrize("name", ["same", "other", "lookup", "careless"])


class Oracle(pg.Draft):
    """A draft that guesses what it is told to."""

    def __init__(self, answer: tuple[int, ...], n_prompt: int, wrong: frozenset[int]) -> None:
        self.answer, self.n_prompt, self.wrong, self.n_asked = answer, n_prompt, wrong, 0
        self.n_guessed = 0

    def _require_same_vocabulary(self, model: pg.Model) -> None:
        pass

    def _propose(
        self, tokens: npt.NDArray[np.int32], _n_ctx: int, n_most: int
    ) -> npt.NDArray[np.int32]:
        at = len(tokens) - self.n_prompt
        self.n_asked += 1
        guesses = [
            token if at + i not in self.wrong else (token + 1) % 1000
            for i, token in enumerate(self.answer[at : at + 6])
        ]
        self.n_guessed += len(guesses[:n_most])
        return np.array(guesses[:n_most], np.int32)


def both(
    model: pg.Model, prompt: Any, draft: Any, *, n_ctx: int = 512, **settings: Any
) -> tuple[pg.Completion, pg.Completion]:
    settings = {"max_tokens": 40, "sampling": GREEDY, **settings}
    with exact_session(model, n_ctx=n_ctx) as session:
        wanted = session.generate(prompt, **settings)
        held = session.tokens.tolist()
        session.reset()
        found = session.generate(prompt, draft=draft, **settings)
        assert (found.tokens, found.text, found.finish_reason) == (
            wanted.tokens,
            wanted.text,
            wanted.finish_reason,
        )
        assert session.tokens.tolist() == held
    return found, wanted


@DRAFTS
def test_the_same_answer(nano: pg.Model, drafts: dict[str, Any], name: str) -> None:
    for prompt in ("The dog", REPEATED, [5], "Once there was a child who"):
        both(nano, prompt, drafts[name])


@DRAFTS
def test_with_all_that_ends_an_answer(nano: pg.Model, drafts: dict[str, Any], name: str) -> None:
    text = both(nano, REPEATED, drafts[name])[0].text
    for at in (3, 10, 17):
        both(nano, REPEATED, drafts[name], stop=[text[at : at + 4], "\n\n"])
    for max_tokens in (1, 2, 3, 5, 8):
        both(nano, REPEATED, drafts[name], max_tokens=max_tokens)
    both(nano, REPEATED, drafts[name], grammar='root ::= " sat"* ("." | "!")')
    both(nano, REPEATED, drafts[name], sampling=pg.Sampling(temperature=0, repeat_penalty=1.3))
    both(nano, REPEATED, drafts[name], sampling=pg.Sampling(temperature=1.3, seed=4))


@DRAFTS
def test_a_chat_that_ends_by_itself(
    nano: pg.Model, drafts: dict[str, Any], name: str, questions: list[dict[str, str]]
) -> None:
    """Its end may be among the guesses: the marker is what followed last time."""
    turns = [{"role": "user", "content": questions[0]["question"]}]
    turns += [{"role": "assistant", "content": questions[0]["answer"]}, turns[0]]
    with exact_session(nano) as session:
        wanted = session.chat(turns, max_tokens=80, sampling=GREEDY)
        held = session.tokens.tolist()
        session.reset()
        found = session.chat(turns, max_tokens=80, sampling=GREEDY, draft=drafts[name])
        assert (found.tokens, found.text) == (wanted.tokens, wanted.text)
        assert found.finish_reason == wanted.finish_reason == "stop"
        assert session.tokens.tolist() == held


@DRAFTS
def test_the_end_of_the_context(nano: pg.Model, drafts: dict[str, Any], name: str) -> None:
    prompt = nano.tokenize(REPEATED)
    n_ctx = len(prompt) + 9
    written: list[list[int | None]] = []
    for draft in (None, drafts[name]):
        with exact_session(nano, n_ctx=n_ctx) as session:
            stream = session.stream(prompt, max_tokens=40, sampling=GREEDY, draft=draft)
            written.append([])
            with pytest.raises(pg.SessionError, match="no room"):
                for chunk in stream:
                    written[-1].append(chunk.token)
            assert len(session.tokens) == n_ctx
    assert written[0] == written[1] and len(written[0]) == 11
    assert written[0][-1] is None  # what was held back


@DRAFTS
def test_log_probabilities(nano: pg.Model, drafts: dict[str, Any], name: str) -> None:
    found, wanted = both(nano, REPEATED, drafts[name], logprobs=2)
    assert found.logprobs is not None and wanted.logprobs is not None
    for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
        assert one.token == other.token and abs(one.logprob - other.logprob) < 1e-4
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.mark.parametrize("wrong", [(), (0,), (3,), (2, 9, 10), tuple(range(40))])
def test_guesses_of_all_kinds(nano: pg.Model, wrong: tuple[int, ...]) -> None:
    prompt = nano.tokenize("The dog")
    answer = both(nano, prompt, None)[1].tokens
    oracle = Oracle(answer, len(prompt), frozenset(wrong))
    found, wanted = both(nano, prompt, oracle)
    assert (wanted.timings.guessed_tokens, wanted.timings.accepted_tokens) == (0, 0)
    if not wrong:
        assert oracle.n_asked <= 1 + len(answer) // 7
    assert found.finish_reason == "stop"
    # Each evaluation gives one token besides the right guesses, that of the prompt too.
    assert found.timings.guessed_tokens == oracle.n_guessed
    assert found.timings.accepted_tokens == len(answer) - oracle.n_asked
    for n_read in range(1, 12):
        with exact_session(nano) as session:
            stream = session.stream(prompt, max_tokens=40, sampling=GREEDY, draft=oracle)
            for _ in range(n_read):
                next(stream)
            held = [*prompt.tolist(), *answer[: n_read - 1]]
            # Guesses that the answer has not come to are nobody's business.
            assert session.tokens.tolist() == held
            if n_read % 3 == 0:
                stream.close()  # type: ignore[attr-defined]
            elif n_read % 3 == 1:
                session.fork(0, 0)
            else:
                session.cancel()
                assert [c.finish_reason for c in stream] == ["cancelled"]
            assert session.tokens.tolist() == held
            with exact_session(nano) as other:
                truth = other.eval(np.array([*held, 7]))
                found = session.eval([7])
                assert np.abs(found - truth).max() < 1e-3 * np.abs(truth).max()


def test_a_processor_that_fails_at_a_guess(nano: pg.Model) -> None:
    prompt = nano.tokenize("The dog")
    answer = both(nano, prompt, None)[1].tokens

    def fail(tokens: Any, logits: Any) -> Any:
        if len(tokens) == len(prompt) + 4:
            raise ZeroDivisionError
        return logits

    for draft in (None, Oracle(answer, len(prompt), frozenset())):
        with exact_session(nano) as session:
            stream = session.stream(
                prompt, max_tokens=20, sampling=GREEDY, logits_processor=fail, draft=draft
            )
            assert [next(stream).token for _ in range(4)] == list(answer[:4])
            with pytest.raises(ZeroDivisionError):
                next(stream)
            assert session.tokens.tolist()[: len(prompt) + 3] == [*prompt, *answer[:3]]
            assert len(session.tokens) <= len(prompt) + 4
            assert session.generate(prompt, max_tokens=5, sampling=GREEDY).tokens == answer[:5]


def test_guesses_do_not_cross_the_line(tmp_path: Path) -> None:
    """A longer sequence is turned otherwise, and gives its token other logits."""
    pg.convert(DATA / "phi3-128k-tiny", tmp_path / "line.gguf", "F32")
    with pg.Model(tmp_path / "line.gguf") as model, pg.Draft(model) as draft:
        random = np.random.default_rng(1)
        for n in (LINE - 9, LINE - 4, LINE - 1, LINE, LINE + 1):
            prompt = random.integers(3, 250, n).astype(np.int32)
            answer = both(model, prompt, None, max_tokens=24)[1].tokens
            both(model, prompt, Oracle(answer, n, frozenset()), max_tokens=24)
            both(model, prompt, draft, max_tokens=24)
            both(model, prompt, pg.PromptLookup(ngram=1), max_tokens=24)


def test_a_state_that_cannot_go_back(tmp_path: Path) -> None:
    with pg.Model(mamba().write(tmp_path / "mamba.gguf")) as model, pg.Draft(model) as draft:
        prompt = np.random.default_rng(2).integers(3, 250, 30).astype(np.int32)
        both(model, prompt, pg.PromptLookup(n=4, ngram=1))
        both(model, prompt, draft)


def test_drafts_that_cannot_be_used(nano: pg.Model, nano_f16: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(nano_f16.read_bytes()[:5000])
    with pytest.raises(pg.FormatError):
        pg.Draft(tmp_path / "broken.gguf")
    with pytest.raises(FileNotFoundError):
        pg.Draft(tmp_path / "none.gguf")
    for n in (0, -1, 65, True, 1.5, None, "8"):
        with pytest.raises(pg.InputError, match="draft: n is"):
            pg.Draft(nano, n=n)  # type: ignore[arg-type]
        with pytest.raises(pg.InputError, match="draft: ngram is"):
            pg.PromptLookup(ngram=n)  # type: ignore[arg-type]
    with pytest.raises(pg.InputError):
        pg.Draft(nano, threads=-1)
    with pg.Session(nano, n_ctx=64) as session:
        other = pg.Draft(small_model("llama").write(tmp_path / "other.gguf"))
        with other, pytest.raises(pg.InputError, match="another vocabulary"):
            session.stream("The dog", max_tokens=3, draft=other)
        with pytest.raises(pg.InputError, match="draft is"):
            session.stream("The dog", max_tokens=3, draft=nano)  # type: ignore[arg-type]
        closed = pg.Draft(nano)
        closed.close()
        closed.close()
        with pytest.raises(pg.SessionError, match="draft is closed"):
            session.stream("The dog", max_tokens=3, draft=closed)
        own = pg.Draft(nano_f16)
        stream = session.stream("The dog", max_tokens=30, sampling=GREEDY, draft=own)
        next(stream)
        own.close()
        with pytest.raises(pg.SessionError, match="closed"):
            list(stream)
        assert session.generate("The dog", max_tokens=3).tokens


def test_a_draft_is_kept_for_longer_contexts(nano: pg.Model, nano_q4: Path) -> None:
    with pg.Draft(nano_q4) as draft:
        for n_ctx in (64, 256, 128):
            with pg.Session(nano, n_ctx=n_ctx) as session:
                answer = session.generate("The dog", max_tokens=20, sampling=GREEDY, draft=draft)
                assert answer.tokens


def test_a_state_between_guesses(nano: pg.Model, tmp_path: Path) -> None:
    """Saved, it has what the answer has come to; loaded, nothing is taken off it."""
    prompt = nano.tokenize("The dog")
    answer = both(nano, prompt, None)[1].tokens
    oracle = Oracle(answer, len(prompt), frozenset())
    with exact_session(nano) as session:
        stream = session.stream(prompt, max_tokens=40, sampling=GREEDY, draft=oracle)
        written = [next(stream).token for _ in range(4)]
        held = session.tokens.tolist()
        session.save(tmp_path / "state")
        written += [chunk.token for chunk in stream if chunk.token is not None]
        assert tuple(written) == answer
        stream = session.stream(prompt, max_tokens=40, sampling=GREEDY, draft=oracle)
        for _ in range(4):
            next(stream)
        session.load(tmp_path / "state")
        assert session.tokens.tolist() == held
        with pytest.raises(pg.SessionError, match="meanwhile"):
            next(stream)
        session.truncate(len(held))
        assert session.tokens.tolist() == held
