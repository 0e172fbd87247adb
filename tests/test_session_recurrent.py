"""Models with a state instead of a cache, which cannot go back to an earlier token."""

from __future__ import annotations

import _thread
import threading

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from small_models import N_VOCAB, SmallModel, small_model

N_LAYER, N_EMBD, N_STATE, N_RANK, N_KERNEL = 2, 64, 16, 8, 4
N_INNER = 2 * N_EMBD
BOUND = 1e-5


def mamba() -> SmallModel:
    """As llama.cpp's src/models/mamba.cpp wants it."""
    model = SmallModel("mamba")
    numbers = {
        ".context_length": 1 << 20,
        ".embedding_length": N_EMBD,
        ".block_count": N_LAYER,
        ".feed_forward_length": 0,
        ".attention.head_count": 0,
        ".ssm.conv_kernel": N_KERNEL,
        ".ssm.inner_size": N_INNER,
        ".ssm.state_size": N_STATE,
        ".ssm.time_step_rank": N_RANK,
    }
    vocabulary = small_model("phi3").metadata
    model.metadata = {
        "general.architecture": "mamba",
        "general.name": "small",
        "mamba.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        **{model.key(key): np.uint32(value) for key, value in numbers.items()},
        **{key: value for key, value in vocabulary.items() if key.startswith("tokenizer.")},
    }
    shapes = {"token_embd.weight": (N_VOCAB, N_EMBD)}
    for i in range(N_LAYER):
        layer = {
            "ssm_in.weight": (2 * N_INNER, N_EMBD),
            "ssm_conv1d.weight": (N_INNER, N_KERNEL),
            "ssm_conv1d.bias": (N_INNER,),
            "ssm_x.weight": (N_RANK + 2 * N_STATE, N_INNER),
            "ssm_dt.weight": (N_INNER, N_RANK),
            "ssm_dt.bias": (N_INNER,),
            "ssm_a": (N_INNER, N_STATE),
            "ssm_d": (N_INNER,),
            "ssm_out.weight": (N_EMBD, N_INNER),
        }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    random = np.random.default_rng(20240423)
    for name, shape in shapes.items():
        values = random.normal(0, 0.3, shape).astype(np.float32)
        model.tensors[name] = -np.abs(values) if name.endswith("ssm_a") else values
    for name in ("output_norm", *(f"blk.{i}.attn_norm" for i in range(N_LAYER))):
        model.tensors[f"{name}.weight"] = np.ones(N_EMBD, np.float32)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    return pg.Model(mamba().write(tmp_path_factory.mktemp("recurrent") / "mamba.gguf"))


@pytest.fixture(scope="module")
def tokens() -> npt.NDArray[np.int32]:
    return np.random.default_rng(20240423).integers(3, N_VOCAB, 20_000).astype(np.int32)


def check(model: pg.Model, found: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32]) -> None:
    """That logits are those of one evaluation of these tokens."""
    with pg.Session(model, n_ctx=64) as session:
        truth = session.eval(tokens).astype(np.float64)
    assert np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)) <= BOUND


def test_ctrl_c_leaves_what_was_there(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    """The state is gone by then; what the session holds is evaluated once more."""
    with pg.Session(model, n_ctx=20_000, threads=1) as session:
        session.eval(tokens[:10])
        ctrl_c = threading.Timer(0.05, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            ctrl_c.start()
            session.eval(tokens[10:])
            ctrl_c.join()
        assert session.tokens.tolist() == tokens[:10].tolist()
        rows = session.eval(tokens[10:12], logits="all")
        assert rows.shape == (2, model.n_vocab)
        check(model, rows[0], tokens[:11])
        check(model, rows[1], tokens[:12])
        check(model, session.eval(tokens[12:13]), tokens[:13])


def test_sequences_have_states_of_their_own(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    with pg.Session(model, n_ctx=64, n_seq_max=3) as session:
        for sequence in (2, 0, 1):
            session.eval(tokens[sequence : sequence + 10], sequence=sequence)
        session.reset(sequence=0)
        check(model, session.eval(tokens[11:13], sequence=1), tokens[1:13])
        check(model, session.eval(tokens[:5], sequence=0), tokens[:5])
        check(model, session.eval(tokens[12:14], sequence=2), tokens[2:14])
