"""The logits of a text do not depend on how its tokens came: one by one, in pieces, generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import (
    KINDS,
    LINE_KINDS,
    WINDOW_KINDS,
    Kind,
    Logits,
    TokenIds,
    exact_session,
    longest,
    nrmse,
)

Reference = dict[str, npt.NDArray[np.float32]]
LINE = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pg.Model]:
    folder = tmp_path_factory.mktemp("order")
    opened = {}
    for name, kind in KINDS.items():
        path = folder / f"{name}-F32.gguf"
        pg.convert(kind.folder, path, "F32")
        opened[name] = pg.Model(path)
    return opened


def rows_one_by_one(session: pg.Session, tokens: TokenIds) -> Logits:
    return np.stack([session.eval([token]) for token in tokens])


def at_once(session: pg.Session, tokens: TokenIds) -> Logits:
    """The logits after the last of the tokens, by one evaluation of them all."""
    session.reset()
    return session.eval(tokens)


@pytest.mark.parametrize("name", list(KINDS))
def test_token_by_token_equals_transformers(models: dict[str, pg.Model], name: str) -> None:
    kind = KINDS[name]
    reference = kind.reference()
    n = 16 if kind.line else 200
    tokens = reference[f"tokens_{n}"].astype(np.int32)
    positions = reference[f"positions_{n}"].astype(np.int32)
    with exact_session(models[name], n_ctx=256) as session:
        rows = rows_one_by_one(session, tokens)
    assert nrmse(rows[positions], reference[f"logits_{n}"]) <= kind.bound


@pytest.mark.parametrize("n_ctx", [300, 4096])
@pytest.mark.parametrize("name", LINE_KINDS)
def test_each_token_has_the_logits_of_the_text_that_ends_there(
    models: dict[str, pg.Model], name: str, n_ctx: int
) -> None:
    kind = KINDS[name]
    reference = kind.reference()
    tokens, prefixes = longest(reference), reference["prefixes"].astype(np.int32)
    assert {LINE - 1, LINE, LINE + 1, len(tokens)} <= set(prefixes)
    with exact_session(models[name], n_ctx=n_ctx) as session:
        rows = rows_one_by_one(session, tokens)
    for n, truth in zip(prefixes, reference["prefix_logits"], strict=True):
        assert nrmse(rows[n - 1], truth) <= kind.bound, n


@pytest.mark.parametrize("name", LINE_KINDS)
def test_each_token_equals_our_own_single_evaluation(
    models: dict[str, pg.Model], name: str
) -> None:
    kind = KINDS[name]
    tokens = longest(kind.reference())[: LINE + 40]
    with exact_session(models[name]) as session:
        rows = rows_one_by_one(session, tokens)
        for n in (*range(3, LINE - 5, 20), *range(LINE - 4, LINE + 8), len(tokens)):
            assert nrmse(rows[n - 1], at_once(session, tokens[:n])) <= kind.bound, n


@pytest.mark.parametrize("name", LINE_KINDS)
def test_the_two_sides_of_the_line_differ_in_the_reference(name: str) -> None:
    """Else the tests around the line could not fail."""
    reference = KINDS[name].reference()
    short = dict(zip(reference["positions_128"].tolist(), reference["logits_128"], strict=True))
    long = dict(zip(reference["positions_129"].tolist(), reference["logits_129"], strict=True))
    both = [p for p in short if p in long and p > 0]
    assert both
    assert min(nrmse(short[p], long[p]) for p in both) > 0.01


@pytest.mark.parametrize(
    "pieces", [(100, 28, 1, 171), (127, 2, 171), (128, 172), (129, 171), (1, 299), (60, 60, 180)]
)
@pytest.mark.parametrize("name", LINE_KINDS)
def test_pieces_across_the_line_equal_transformers(
    models: dict[str, pg.Model], name: str, pieces: Sequence[int]
) -> None:
    kind = KINDS[name]
    reference = kind.reference()
    tokens = longest(reference)
    assert sum(pieces) == len(tokens)
    with exact_session(models[name], n_batch=32) as session:
        for piece in np.split(tokens, np.cumsum(pieces)[:-1]):
            last = session.eval(piece)
        assert session.tokens.tolist() == tokens.tolist()
    assert nrmse(last, reference["prefix_logits"][-1]) <= kind.bound


@pytest.mark.parametrize("name", LINE_KINDS)
def test_a_short_text_after_a_long_one_is_on_the_short_side(
    models: dict[str, pg.Model], name: str
) -> None:
    kind = KINDS[name]
    reference = kind.reference()
    tokens = longest(reference)
    with exact_session(models[name]) as session:
        for n in (300, 16, 129, 127, 200, 128):
            session.reset()
            logits = session.eval(tokens[:n], logits="all")
            positions = reference[f"positions_{n}"].astype(np.int32)
            assert nrmse(logits[positions], reference[f"logits_{n}"]) <= kind.bound, n


def greedy(session: pg.Session, tokens: TokenIds, n: int) -> list[int]:
    """The n best next tokens, each by one evaluation of all before it."""
    text = [int(token) for token in tokens]
    for _ in range(n):
        text.append(int(at_once(session, np.array(text, dtype=np.int32)).argmax()))
    return text[len(tokens) :]


@pytest.mark.parametrize("name", [*LINE_KINDS, *WINDOW_KINDS])
def test_generating_across_the_limit_equals_single_evaluations(
    models: dict[str, pg.Model], name: str
) -> None:
    kind = KINDS[name]
    limit = kind.line or kind.window or 0
    crossed = 0
    with exact_session(models[name]) as session:
        for before in (10, 4, 2):
            start = longest(kind.reference())[: limit - before]
            expected = greedy(session, start, 24)
            answer = session.generate(start, max_tokens=24, sampling=pg.Sampling(temperature=0))
            written = [int(token) for token in answer.tokens]
            assert len(written) == 24 or answer.finish_reason == "stop"
            assert written == expected[: len(written)]
            crossed += len(written) > before + 2
    assert crossed >= 2  # a random model may also end its answer before the limit


@pytest.mark.parametrize("name", LINE_KINDS)
def test_sequences_on_both_sides_share_a_context(models: dict[str, pg.Model], name: str) -> None:
    kind: Kind = KINDS[name]
    reference = kind.reference()
    tokens = longest(reference)
    rows: dict[int, Logits] = {}
    with exact_session(models[name], n_seq_max=2) as session:
        session.eval(tokens[:200], sequence=0)
        rows[60] = session.eval(tokens[:60], sequence=1)
        rows[299] = session.eval(tokens[200:299], sequence=0)
        rows[127] = session.eval(tokens[60:127], sequence=1)
        rows[300] = session.eval(tokens[299:], sequence=0)
        rows[128] = session.eval(tokens[127:128], sequence=1)
        rows[129] = session.eval(tokens[128:129], sequence=1)
    prefixes = reference["prefixes"].tolist()
    for n, row in rows.items():
        assert nrmse(row, reference["prefix_logits"][prefixes.index(n)]) <= kind.bound, n
