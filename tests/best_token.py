"""Whether files of fewer bits agree with F32 about the best next token, and where that is asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import phiggml as pg
from logits_reference import NANO, Kind, Logits, TokenIds, exact_session, longest

LENGTHS = (100, 120, 128, 200, 250, 250)  # on both sides of every limit
# Random weights leave the two best logits nearer than any rounding at many a position, unlike
# trained ones: those nearer than a tenth of the logits' spread count for nothing.
LEAD = 0.1


@dataclass(frozen=True)
class Agreement:
    """Shares from 0 to 1: of all positions, and of those that count, which agree with F32."""

    everywhere: float
    counted: float


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


def counting(kind: Kind, truth: Logits) -> npt.NDArray[np.bool_]:
    """bool[positions]: which positions count, by the logits of F32."""
    if kind.folder == NANO:  # trained: every position counts
        return np.ones(len(truth), dtype=bool)
    second, first = np.sort(truth, axis=1)[:, -2:].T
    lead: npt.NDArray[np.bool_] = first - second > LEAD * truth.std(axis=1)
    return lead


def agreement(found: Logits, truth: Logits, counts: npt.NDArray[np.bool_]) -> Agreement:
    same = found.argmax(axis=1) == truth.argmax(axis=1)
    return Agreement(float(same.mean()), float(same[counts].mean()))
