"""The router of phimoe: equal scores, few and many experts, and weights that are no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from small_models import N_EMBD, N_FF, N_VOCAB, small_model

JITTER = 0.01
N_TOKENS = 60
# The same in float32, through one layer; another expert, or another share, differs by 0.1 and more.
BOUND = 1e-5

Numbers = npt.NDArray[Any]


def one_layer(gate: Numbers) -> dict[str, Numbers]:
    """Tensors of a model whose attention adds nothing; each row of the gate has its expert."""
    random = np.random.default_rng(20240423)
    n_expert = len(gate)
    tensors = {
        name: np.zeros_like(values, np.float32)
        for name, values in small_model("phimoe").tensors.items()
        if not name.startswith(("blk.1.", "rope_factors"))
    }
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"][:] = 1
    shapes = {
        "token_embd": (N_VOCAB, N_EMBD),
        "output": (N_VOCAB, N_EMBD),
        "blk.0.ffn_gate_exps": (n_expert, N_FF, N_EMBD),
        "blk.0.ffn_up_exps": (n_expert, N_FF, N_EMBD),
        "blk.0.ffn_down_exps": (n_expert, N_EMBD, N_FF),
    }
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = random.normal(0, 0.4, shape).astype(np.float32)
    return tensors | {"blk.0.ffn_gate_inp.weight": gate.astype(np.float32)}


def session(tensors: dict[str, Numbers], path: Path) -> pg.Session:
    model = small_model("phimoe")
    model.metadata[model.key(".block_count")] = np.uint32(1)
    n_expert = len(tensors["blk.0.ffn_gate_inp.weight"])
    model.metadata[model.key(".expert_count")] = np.uint32(n_expert)
    model.tensors = tensors
    return pg.Session(model.write(path), n_ctx=128, type_k="F32", type_v="F32", flash_attn=False)


def normed(x: Numbers) -> Numbers:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5))


def share(scores: Numbers, chosen: int, left_out: list[int]) -> float:
    """Of the chosen expert, in a softmax over those whose scores count as equal to it."""
    best = scores[chosen]
    larger = np.maximum(np.abs(scores), best)
    counts = best - scores <= 2 * JITTER * larger
    counts[left_out] = False
    return float(1 / np.exp(scores[counts] - best).sum())


def expected(tensors: dict[str, Numbers], token: int) -> Numbers:
    """The logits, by the rule of arXiv 2409.12136; among equal scores the first expert's counts."""
    exact = {name: values.astype(np.float64) for name, values in tensors.items()}
    residual = exact["token_embd.weight"][token]
    x = normed(residual)
    scores = (exact["blk.0.ffn_gate_inp.weight"] * x).sum(-1)  # equal rows give equal sums
    first = int(np.argmax(scores))
    second = int(np.argmax(np.where(np.arange(len(scores)) == first, -np.inf, scores)))
    for expert, left_out in ((first, []), (second, [first])):
        gate, up, down = (
            exact[f"blk.0.ffn_{part}_exps.weight"][expert] for part in ("gate", "up", "down")
        )
        silu = (gate @ x) / (1 + np.exp(-(gate @ x)))
        residual = residual + share(scores, expert, left_out) * (down @ (silu * (up @ x)))
    return np.asarray(exact["output.weight"] @ normed(residual))


def gates(n_expert: int) -> dict[str, Numbers]:
    random = np.random.default_rng(n_expert).normal(0, 1, (n_expert, N_EMBD))
    return {
        "different": random,
        "zero": 0 * random,
        "all equal": np.tile(random[0], (n_expert, 1)),
        "equal in pairs": random[np.arange(n_expert) // 2],
        "within the jitter and without": random[0] * (1 - 0.013 * np.arange(n_expert))[:, None],
    }


@pytest.mark.parametrize("n_expert", [2, 3, 16])
def test_shares_of_equal_scores(tmp_path: Path, n_expert: int) -> None:
    """The scores of half the tokens are negative where they are equal."""
    for what, gate in gates(n_expert).items():
        tensors = one_layer(gate)
        with session(tensors, tmp_path / "model.gguf") as opened:
            found = opened.eval(range(N_TOKENS), logits="all")
        for token in range(N_TOKENS):
            truth = expected(tensors, token)
            error = np.sqrt(np.mean((found[token] - truth) ** 2) / np.mean(truth**2))
            assert error <= BOUND, (what, token, error)


@pytest.mark.parametrize("n_expert", [4, 16, 64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [slice(1, 2), slice(0, None, 3), slice(None)])
def test_a_damaged_router_is_seen(tmp_path: Path, n_expert: int, value: float, rows: slice) -> None:
    """One row of it taken for some score would give answers that look sound."""
    gate = gates(n_expert)["different"]
    gate[rows] = value
    with session(one_layer(gate), tmp_path / "model.gguf") as opened:
        assert np.isnan(opened.eval(range(N_TOKENS), logits="all")).all()
        with pytest.raises(pg.SessionError, match="not finite"):
            opened.generate([5], max_tokens=1)


def test_nothing_is_sampled_where_no_token_is_possible(tmp_path: Path) -> None:
    tensors = one_layer(gates(4)["different"])
    tensors["output.bias"][:] = -np.inf
    with (
        session(tensors, tmp_path / "model.gguf") as opened,
        pytest.raises(pg.SessionError, match="not finite"),
    ):
        opened.generate([5], max_tokens=1)
    tensors["output.bias"][7] = 0
    with session(tensors, tmp_path / "model.gguf") as opened:
        assert opened.generate([5], max_tokens=2).tokens == (7, 7)
