"""Logits against transformers in float32 (reference values made by tools/make_reference.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parent.parent / "examples" / "phi3-nano"

# nrmse over all logits; the long-rope kind is right here because n_ctx stays below its
# original_max_position_embeddings (docs/decisions.md has the rest).
BOUND_F32 = 1e-5
# Flash attention accumulates in half precision, and so does a half-precision cache.
BOUND_F16 = 2e-3

CHECKPOINTS = {
    "phi3-nano": NANO,
    "phi3-mini-tiny": DATA / "phi3-mini-tiny",
    "phi3-medium-tiny": DATA / "phi3-medium-tiny",
    "phi3.5-mini-tiny": DATA / "phi3.5-mini-tiny",
}


def nrmse(found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    difference = found.astype(np.float64) - truth
    return float(np.sqrt(np.mean(difference**2) / np.mean(truth.astype(np.float64) ** 2)))


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    path = tmp_path_factory.mktemp("logits") / f"{kind}-F32.gguf"
    pg.convert(CHECKPOINTS[kind], path, "F32")
    return pg.Model(path)


@pytest.fixture(scope="module")
def reference(kind: str) -> dict[str, npt.NDArray[np.float32]]:
    with np.load(DATA / f"logits_{kind}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("n", [16, 200])
@pytest.mark.parametrize(
    ("cache", "flash_attn", "bound"),
    [("F32", False, BOUND_F32), ("F16", False, BOUND_F16), ("F16", True, BOUND_F16)],
)
def test_logits_equal_transformers(
    model: pg.Model,
    reference: dict[str, npt.NDArray[np.float32]],
    n: int,
    cache: str,
    flash_attn: bool,
    bound: float,
) -> None:
    tokens, positions = reference[f"tokens_{n}"], reference[f"positions_{n}"]
    truth = reference[f"logits_{n}"]
    with pg.Session(model, n_ctx=512, type_k=cache, type_v=cache, flash_attn=flash_attn) as session:
        logits = session.eval(tokens, logits="all")
    assert logits.shape == (n, model.n_vocab)
    assert nrmse(logits[positions], truth) <= bound


def test_token_by_token_equals_all_at_once(
    model: pg.Model, reference: dict[str, npt.NDArray[np.float32]]
) -> None:
    tokens, truth = reference["tokens_16"], reference["logits_16"]
    with pg.Session(model, n_ctx=64, type_k="F32", type_v="F32", flash_attn=False) as session:
        rows = np.stack([session.eval([token]) for token in tokens])
    assert nrmse(rows[reference["positions_16"]], truth) <= BOUND_F32


def test_two_threads_equal_one(
    model: pg.Model, reference: dict[str, npt.NDArray[np.float32]]
) -> None:
    tokens, truth = reference["tokens_16"], reference["logits_16"]
    settings = {"n_ctx": 64, "type_k": "F32", "type_v": "F32"}
    with pg.Session(model, flash_attn=False, threads=2, **settings) as session:
        logits = session.eval(tokens, logits="all")
    assert nrmse(logits[reference["positions_16"]], truth) <= BOUND_F32


def test_small_batches_equal_one(
    model: pg.Model, reference: dict[str, npt.NDArray[np.float32]]
) -> None:
    tokens, truth = reference["tokens_200"], reference["logits_200"]
    settings = {"n_ctx": 256, "n_batch": 32, "type_k": "F32", "type_v": "F32"}
    with pg.Session(model, flash_attn=False, **settings) as session:
        logits = session.eval(tokens, logits="all")
    assert nrmse(logits[reference["positions_200"]], truth) <= BOUND_F32
