"""Numbers that users pass: numpy's count as Python's do."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from phiggml.number import integer, real


@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint16])
def test_integers(kind: type) -> None:
    assert type(integer(kind(7), 0, 7)) is int
    assert integer(kind(7), 7) == 7
    assert integer(kind(7), 8) is None
    assert integer(kind(7), 0, 6) is None


@pytest.mark.parametrize("value", [True, np.bool_(True), 1.0, np.float32(1), "1", None, [1]])
def test_no_integers(value: object) -> None:
    assert integer(value, 0) is None


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5)])
def test_reals(value: float) -> None:
    number = real(value)
    assert type(number) is float
    assert number == 0.5


@pytest.mark.parametrize("value", [True, np.bool_(False), "1", None, 1j, np.complex64(1)])
def test_no_reals(value: object) -> None:
    assert real(value) is None


def test_what_no_float_holds() -> None:
    assert real(10**400) == math.inf
    assert real(-(10**400)) == -math.inf
    assert math.isnan(real(np.float32(np.nan)) or 0)


def test_sessions_take_numbers_of_numpy(nano_f32: Path) -> None:
    answers = []
    for whole, part in ((int, float), (np.int64, np.float32)):
        sampling = pg.Sampling(
            temperature=part(0.75), top_k=whole(20), seed=whole(3), logit_bias={whole(300): part(1)}
        )
        with pg.Model(nano_f32, n_gpu_layers=whole(0)) as model:
            settings = {"n_ctx": whole(64), "n_seq_max": whole(2), "threads": whole(1)}
            with pg.Session(model, **settings) as session:
                logits = session.eval([1, 300, 301], logits=[whole(1)], sequence=whole(1))
                session.truncate(whole(1), sequence=whole(1))
                answer = session.generate(
                    "The child",
                    max_tokens=whole(8),
                    sampling=sampling,
                    logprobs=whole(2),
                    draft=pg.PromptLookup(whole(4), ngram=whole(2)),
                )
                answers.append((logits.tolist(), answer.tokens, answer.logprobs))
    assert answers[0] == answers[1]
