"""Whether files of fewer bits agree with F32 about the best next token."""

from __future__ import annotations

import numpy as np

import phiggml as pg
from logits_reference import Kind, Logits, TokenIds, exact_session, longest

LENGTHS = (100, 120, 128, 200, 250, 250)  # on both sides of every limit


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


def agreement(found: Logits, truth: Logits) -> float:
    """The share of all positions, from 0 to 1, whose best token is the same."""
    return float(np.mean(found.argmax(axis=1) == truth.argmax(axis=1)))
