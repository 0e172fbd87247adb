"""Files of fewer bits agree with F32 about the best next token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from logits_reference import KINDS, Kind, Logits, TokenIds, exact_session, longest

AGREEMENT = {"BF16": 0.99, "Q8_0": 0.97}
LENGTHS = (100, 120, 128, 200, 250, 250)  # on both sides of every limit
# Random weights leave the two best logits nearer than any rounding at many a position, unlike
# trained ones: those nearer than a tenth of the logits' spread count for nothing.
LEAD = 0.1
COUNTED = 0.7


def random_texts(kind: Kind) -> list[TokenIds]:
    rng = np.random.default_rng(7)
    high = int(longest(kind.reference()).max()) + 1
    return [rng.integers(3, high, n).astype(np.int32) for n in LENGTHS]


def all_logits(model: pg.Model, texts: list[TokenIds]) -> Logits:
    """float32[positions, n_vocab], the logits after each token of each text."""
    rows = []
    with exact_session(model) as session:
        for text in texts:
            session.reset()
            rows.append(session.eval(text, logits="all"))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_best_token_is_that_of_f32(name: str, tmp_path: Path) -> None:
    logits, texts = {}, random_texts(KINDS[name])
    for type in ("F32", *AGREEMENT):
        path = tmp_path / f"{name}-{type}.gguf"
        pg.convert(KINDS[name].folder, path, type)
        logits[type] = all_logits(pg.Model(path), texts)
    truth = logits["F32"]
    second, first = np.sort(truth, axis=1)[:, -2:].T
    counts = np.ones(len(truth), dtype=bool)
    if name != "phi3-nano":  # trained: every position counts
        counts = first - second > LEAD * truth.std(axis=1)
    assert counts.mean() >= COUNTED
    for type, least in AGREEMENT.items():
        same = logits[type].argmax(axis=1) == truth.argmax(axis=1)
        assert same[counts].mean() >= least, (type, same[counts].mean())
        assert not np.array_equal(logits[type], truth)
