"""Logits on both sides of the released limits: windows of 2047 tokens, long rope from 4097 on."""

from __future__ import annotations

import numpy as np
import pytest

import phiggml as pg
from logits_reference import BOUND_F16, DATA, KINDS, exact_session, nrmse

NAMES = sorted(path.stem.removeprefix("limit_") for path in DATA.glob("limit_*.npz"))


def test_every_checkpoint_with_a_released_limit_is_here() -> None:
    assert NAMES == [
        "phi3-medium-tiny",
        "phi3-mini-tiny",
        "phi3-nano",
        "phi3.5-mini-tiny",
        "phi3v-tiny",
        "phi4mm-tiny",
    ]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    path = tmp_path_factory.mktemp("limits") / f"{name}-F32.gguf"
    pg.convert(KINDS[name].folder, path, "F32")
    return pg.Model(path)


def test_each_side_equals_transformers(model: pg.Model, name: str) -> None:
    with np.load(DATA / f"limit_{name}.npz") as truth, exact_session(model, n_ctx=8192) as session:
        for n, logits in zip(truth["lengths"], truth["logits"], strict=True):
            session.reset()
            assert nrmse(session.eval(truth["tokens"][:n]), logits) <= KINDS[name].bound, n


def test_a_sequence_that_grows_over_the_limit(model: pg.Model, name: str) -> None:
    with np.load(DATA / f"limit_{name}.npz") as truth, exact_session(model, n_ctx=4224) as session:
        tokens, done = truth["tokens"], 0
        for n, logits in zip(truth["lengths"], truth["logits"], strict=True):
            assert nrmse(session.eval(tokens[done:n]), logits) <= KINDS[name].bound, n
            done = n


@pytest.mark.parametrize("flash_attn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_half_precision_at_the_limit(model: pg.Model, name: str, flash_attn: bool) -> None:
    """With a cache of F16, over the logits of all lengths. Their last pieces are of few tokens."""
    found = []
    with (
        np.load(DATA / f"limit_{name}.npz") as truth,
        pg.Session(model, n_ctx=4224, flash_attn=flash_attn) as session,
    ):
        for n in truth["lengths"]:
            session.reset()
            found.append(session.eval(truth["tokens"][:n]))
        assert nrmse(np.stack(found), truth["logits"]) <= BOUND_F16
