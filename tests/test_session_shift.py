"""overflow="shift": the older half of a full context leaves it, and the rest goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import small_models
from logits_reference import DATA, Logits, nrmse
from small_models import N_VOCAB, SmallModel, small_model
from test_session_recurrent import mamba

GREEDY = pg.Sampling(temperature=0)
N_CTX, N_SINKS = 64, 4
# By the type of keys and values. Those that were turned twice, and rounded between, are not those
# that were turned once; a token at the place before its own changes the logits by 0.01 and more.
BOUNDS = {"F32": 1e-4, "F16": 5e-3, "Q8_0": 5e-3}


def model_of_one_layer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> SmallModel:
    """What it keeps of a token depends on the token and its place alone."""
    monkeypatch.setattr(small_models, "N_LAYER", 1)
    monkeypatch.setattr(small_models, "N_HEAD", 2)
    monkeypatch.setattr(small_models, "N_HEAD_KV", 2)
    monkeypatch.setattr(small_models, "N_HEAD_DIM", 32)
    monkeypatch.setattr(small_models, "N_QKV", 3 * 64)
    model = small_model(architecture)
    random = np.random.default_rng(5)
    for name, values in model.tensors.items():
        if values.ndim == 2:
            # Large enough for attention to look at some tokens more than at others.
            scale = 1.5 if "token_embd" in name else 0.3
            model.tensors[name] = random.normal(0, scale, values.shape).astype(np.float32)
        elif not name.startswith("rope_"):
            model.tensors[name] = values.astype(np.float32)
    return model


def without_factors(model: SmallModel) -> SmallModel:
    for name in [name for name in model.tensors if name.startswith("rope_factors")]:
        del model.tensors[name]
    return model


def text(n: int, seed: int = 7) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, N_VOCAB, n).astype(np.int32)


def session_of(model: pg.Model, type: str = "F32", **settings: Any) -> pg.Session:
    settings = {"n_ctx": N_CTX, "overflow": "shift", **settings}
    return pg.Session(model, type_k=type, type_v=type, flash_attn=type == "Q8_0", **settings)


def dropped(tokens: list[int], n_more: int, n_ctx: int = N_CTX) -> list[int]:
    """What is left of them where there is room for so many more."""
    while len(tokens) + n_more > n_ctx:
        n_kept = N_SINKS if len(tokens) > 2 * N_SINKS else 0
        n_dropped = (len(tokens) - n_kept + 1) // 2
        tokens = tokens[:n_kept] + tokens[n_kept + n_dropped :]
    return tokens


def fresh(model: pg.Model, tokens: list[int], type: str) -> Logits:
    with session_of(model, type, n_ctx=N_CTX) as session:
        return session.eval(tokens)


@pytest.mark.parametrize("type", BOUNDS)
@pytest.mark.parametrize("architecture", ["llama", "phi2", "phi3", "phimoe", "qwen2", "gemma"])
def test_what_is_left_is_as_if_read_at_its_new_place(
    architecture: str, type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = without_factors(model_of_one_layer(architecture, monkeypatch))
    with pg.Model(made.write(tmp_path / "one.gguf")) as model, session_of(model, type) as session:
        held: list[int] = []
        for step, n in enumerate([50, 14, 1, 1, 20, 30, 64, 7, 1] + [1] * 80):
            more = text(n, seed=step).tolist()
            held = dropped(held, n) + more
            found = session.eval(more)
            assert session.tokens.tolist() == held
            assert nrmse(found, fresh(model, held, type)) <= BOUNDS[type], step


@pytest.mark.parametrize("kind", ["long rope", "short cache", "state"])
def test_what_cannot_move_is_read_again(kind: str, tmp_path: Path) -> None:
    """Also by models of more layers, whose tokens then know nothing of what has left."""
    settings: dict[str, Any] = {}
    if kind == "state":
        path = mamba().write(tmp_path / "mamba.gguf")
    else:
        name = "phi3-128k-tiny" if kind == "long rope" else "phi3-window-tiny"
        path = tmp_path / "model.gguf"
        pg.convert(DATA / name, path, "F32")
        settings = {"n_ctx": 160, "swa_full": kind == "long rope"}
    with pg.Model(path) as model, session_of(model, **settings) as session:
        n_ctx = session.n_ctx
        held: list[int] = []
        for step in range(60):
            more = text(1 + step % 40, seed=step).clip(3, 255).tolist()
            held = dropped(held, len(more), n_ctx) + more
            found = session.eval(more)
            assert session.tokens.tolist() == held
            with pg.Session(
                model, n_ctx=512, type_k="F32", type_v="F32", flash_attn=False
            ) as whole:
                assert nrmse(found, whole.eval(held)) <= 1e-5, step


def test_sequences_that_were_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift of one, also before the copy is made, leaves the other."""
    made = without_factors(model_of_one_layer("phi3", monkeypatch))
    paths = [made.write(tmp_path / "one.gguf"), mamba().write(tmp_path / "mamba.gguf")]
    for path in paths:
        with pg.Model(path) as model, session_of(model, n_seq_max=3) as session:
            a = text(60).tolist()
            session.eval(a)
            session.fork(0, 1)
            held = [a, a, []]
            for step, (sequence, n) in enumerate([(0, 8), (1, 3), (1, 4), (0, 40), (1, 1)]):
                more = text(n, seed=step).tolist()
                held[sequence] = dropped(held[sequence], n) + more
                found = session.eval(more, sequence=sequence)
                assert nrmse(found, fresh(model, held[sequence], "F32")) <= 1e-5, step
            session.fork(1, 2)
            session.truncate(20, sequence=1)
            session.fork(0, 1)
            for sequence, source in ((2, 1), (1, 0)):
                found = session.eval([5], sequence=sequence)
                truth = fresh(model, [*dropped(held[source], 1), 5], "F32")
                assert nrmse(found, truth) <= 1e-5


def test_an_answer_goes_on_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, each token the best after one evaluation of what is left of those before it."""
    made = without_factors(model_of_one_layer("llama", monkeypatch))
    never = pg.Sampling(temperature=0, logit_bias={2: -np.inf})
    with pg.Model(made.write(tmp_path / "one.gguf")) as model, session_of(model) as session:
        prompt = text(40).tolist()
        answer = session.generate(prompt, max_tokens=400, sampling=never)
        assert len(answer.tokens) == 400
        held = list(prompt)
        for i, token in enumerate(answer.tokens):
            if i in (0, 23, 24, 25, 30, 100, 200, 399):
                logits = fresh(model, held, "F32")
                logits[2] = -np.inf
                assert int(np.argmax(logits)) == token, i
            if i + 1 < len(answer.tokens):
                held = [*dropped(held, 1), token]
        assert session.tokens.tolist() == held
        assert held[:N_SINKS] == prompt[:N_SINKS]


def test_what_fails_brings_back_what_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = without_factors(model_of_one_layer("llama", monkeypatch))
    with (
        pg.Model(made.write(tmp_path / "one.gguf")) as model,
        session_of(model, n_seq_max=2) as session,
    ):
        a, b = text(60).tolist(), text(30, seed=8).tolist()
        session.eval(a)
        session.eval(b, sequence=1)
        stream = session.stream(a, max_tokens=20, sampling=GREEDY)
        for _ in range(5):
            next(stream)
        before = session.tokens.tolist()
        session.cancel()
        assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
        assert session.tokens.tolist() == before
        for sequence, held in ((0, before), (1, b)):
            found = session.eval([5], sequence=sequence)
            truth = fresh(model, [*dropped(held, 1), 5], "F32")
            assert nrmse(found, truth) <= 1e-5


SCALED: dict[str, dict[str, Any]] = {
    "attn_factor": {".rope.scaling.attn_factor": np.float32(1.3)},
    "yarn": {
        ".rope.scaling.type": "yarn",
        ".rope.scaling.factor": np.float32(4),
        ".rope.scaling.original_context_length": np.uint32(32),
    },
    "linear": {".rope.scaling.type": "linear", ".rope.scaling.factor": np.float32(4)},
}


@pytest.mark.parametrize("scaling", SCALED)
def test_keys_that_are_scaled_are_read_again(
    scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What llama.cpp would scale once more is off by 0.03 and more."""
    for architecture in ("llama", "phi3"):
        made = without_factors(model_of_one_layer(architecture, monkeypatch))
        made.metadata |= {made.key(key): value for key, value in SCALED[scaling].items()}
        with pg.Model(made.write(tmp_path / "one.gguf")) as model, session_of(model) as session:
            held = text(60).tolist()
            session.eval(held)
            found = session.eval([5] * 10)
            truth = fresh(model, dropped(held, 10) + [5] * 10, "F32")
            assert nrmse(found, truth) <= BOUNDS["F32"], architecture
