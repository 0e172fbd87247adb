"""Logits against transformers in float32 (reference values made by tools/make_reference.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import (
    BOUND_F16,
    KINDS,
    LINE_KINDS,
    Kind,
    exact_session,
    lengths,
    nrmse,
)

Reference = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    path = tmp_path_factory.mktemp("logits") / f"{kind.name}-F32.gguf"
    pg.convert(kind.folder, path, "F32")
    return pg.Model(path)


@pytest.fixture(scope="module")
def reference(kind: Kind) -> Reference:
    return kind.reference()


def errors(session: pg.Session, reference: Reference) -> dict[int, float]:
    """nrmse of every text that fits into the session, by its length."""
    found = {}
    for n in lengths(reference):
        if n <= session.n_ctx:
            session.reset()
            logits = session.eval(reference[f"tokens_{n}"].astype(np.int32), logits="all")
            assert logits.shape == (n, session.model.n_vocab)
            positions = reference[f"positions_{n}"].astype(np.int32)
            found[n] = nrmse(logits[positions], reference[f"logits_{n}"])
    return found


def test_logits_equal_transformers_at_any_context(
    model: pg.Model, kind: Kind, reference: Reference
) -> None:
    for n_ctx in kind.contexts:
        with exact_session(model, n_ctx=n_ctx) as session:
            found = errors(session, reference)
        assert 16 in found
        assert max(found.values()) <= kind.bound, (n_ctx, found)


@pytest.mark.parametrize("n_batch", [32, 512])
def test_a_text_is_read_by_its_whole_length_in_batches_of_any_size(
    model: pg.Model, kind: Kind, reference: Reference, n_batch: int
) -> None:
    with exact_session(model, n_batch=n_batch) as session:
        found = errors(session, reference)
    assert list(found) == lengths(reference)
    assert max(found.values()) <= kind.bound, found


@pytest.mark.parametrize(("cache", "flash_attn"), [("F16", False), ("F16", True), ("F32", True)])
def test_half_precision_is_near_transformers(
    model: pg.Model, reference: Reference, cache: str, flash_attn: bool
) -> None:
    with pg.Session(model, n_ctx=512, flash_attn=flash_attn, type_k=cache, type_v=cache) as session:
        found = errors(session, reference)
    assert max(found.values()) <= BOUND_F16, found


def test_two_threads_equal_one(model: pg.Model, kind: Kind, reference: Reference) -> None:
    tokens = reference["tokens_16"].astype(np.int32)
    with exact_session(model, n_ctx=64, threads=2) as session:
        logits = session.eval(tokens, logits="all")
    assert nrmse(logits, reference["logits_16"]) <= kind.bound


@pytest.mark.parametrize("name", ["phi3.5-mini-tiny", "phi4mm-tiny", *LINE_KINDS])
def test_the_released_context_changes_nothing(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, path = KINDS[name], tmp_path_factory.mktemp("long") / f"{name}.gguf"
    pg.convert(kind.folder, path, "F32")
    with exact_session(pg.Model(path), n_ctx=131072, n_batch=64) as session:
        found = errors(session, kind.reference())
    assert max(found.values()) <= kind.bound, found
