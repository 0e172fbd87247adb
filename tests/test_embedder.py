"""Embeddings: vectors that give the logits they must, and those of a BERT computed in numpy."""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import embedding_models
import phiggml as pg
from adapter_files import merged, random_pairs, write_lora
from embedding_models import bert, bert_hidden
from logits_reference import BOUND_F32, BOUND_GELU, DATA, exact_session, nrmse
from small_models import small_model
from test_session_recurrent import mamba

# Texts that are decoded together add in another order.
BOUND = BOUND_F32
TEXTS = ["A cat sat on the mat.", "What is GGUF?", "The child", "a"]


@pytest.fixture(scope="module")
def model(nano_f32: Path) -> pg.Model:
    return pg.Model(nano_f32)


@pytest.fixture(scope="module")
def head(nano_f32: Path) -> npt.NDArray[np.float64]:
    with pg.GGUFFile(nano_f32) as file:
        return file.tensors["output.weight"].dequantize().astype(np.float64)


@pytest.fixture
def session(model: pg.Model) -> Iterator[pg.Session]:
    with exact_session(model, n_ctx=1024) as session:
        yield session


def test_the_head_of_vectors_is_logits(session: pg.Session, head: npt.NDArray[np.float64]) -> None:
    """What eval computes from the last norm's output, for each token of each text."""
    vectors = session.embed(TEXTS, pooling="none", normalize=False)
    assert len(vectors) == len(TEXTS)
    for text, rows in zip(TEXTS, vectors, strict=True):
        assert rows.dtype == np.float32
        tokens = session.model.tokenize(text)
        logits = session.eval(tokens, logits="all")
        assert nrmse((rows @ head.T).astype(np.float32), logits) <= BOUND
        session.reset()


def test_pooling(session: pg.Session) -> None:
    """In numpy, of the tokens' vectors."""
    rows = session.embed(TEXTS, pooling="none", normalize=False)
    wanted: dict[Any, list[Any]] = {
        "mean": [r.astype(np.float64).mean(axis=0) for r in rows],
        "cls": [r[0] for r in rows],
        "last": [r[-1] for r in rows],
    }
    wanted[None] = wanted["mean"]
    for pooling, vectors in wanted.items():
        found = session.embed(TEXTS, pooling=pooling, normalize=False)
        assert found.shape == (len(TEXTS), 256) and found.dtype == np.float32
        assert np.allclose(found, vectors, rtol=1e-6, atol=1e-6)
        unit = session.embed(TEXTS, pooling=pooling)
        lengths = np.linalg.norm(np.array(vectors, np.float64), axis=1, keepdims=True)
        assert np.allclose(unit, vectors / lengths, rtol=1e-6, atol=1e-7)
    assert np.array_equal(session.embed(TEXTS), session.embed(TEXTS, pooling="mean"))
    each = session.embed(TEXTS, pooling="none")
    assert all(np.allclose(np.linalg.norm(r, axis=1), 1, atol=1e-6) for r in each)


def test_texts_do_not_see_each_other(session: pg.Session) -> None:
    """Sixty at once, of all lengths: as each alone."""
    random = np.random.default_rng(11)
    texts = [random.integers(3, 2000, n).astype(np.int32) for n in random.integers(1, 60, 60)]
    found = session.embed(texts)
    for text, vector in zip(texts, found, strict=True):
        assert nrmse(vector, session.embed([text])[0]) <= BOUND


def test_a_text_that_takes_several_batches(
    session: pg.Session, head: npt.NDArray[np.float64]
) -> None:
    tokens = np.random.default_rng(12).integers(3, 2000, 1024).astype(np.int32)
    rows = session.embed([tokens[:9], tokens, tokens[:5]], pooling="none", normalize=False)
    assert [len(r) for r in rows] == [9, 1024, 5]
    logits = session.eval(tokens)
    assert nrmse((rows[1][-1] @ head.T).astype(np.float32), logits) <= BOUND
    assert nrmse(rows[0], rows[1][:9]) <= BOUND
    with pytest.raises(pg.InputError, match=r"text 1 has 1025 tokens.* 1024"):
        session.embed([tokens, [*tokens, 5]])


@pytest.mark.parametrize("name", ["phi3-128k-tiny", "phi3-window-tiny", "phimoe-tiny"])
def test_positions(name: str, tmp_path: Path) -> None:
    """Texts on both sides of the line of long rope, or longer than the window, in one call."""
    path = tmp_path / "model.gguf"
    pg.convert(DATA / name, path, "F32")
    with pg.GGUFFile(path) as file:
        head = file.tensors["output.weight"].dequantize()
        bias = file.tensors["output.bias"].dequantize() if "output.bias" in file.tensors else 0
    with pg.Model(path) as model, exact_session(model) as session:
        tokens = np.random.default_rng(13).integers(3, model.n_vocab, 200).astype(np.int32)
        texts = [tokens[:n] for n in (100, 200, 128, 129, 3)]
        rows = session.embed(texts, pooling="last", normalize=False)
        for text, row in zip(texts, rows, strict=True):
            session.reset()
            assert nrmse(row @ head.T + bias, session.eval(text)) <= BOUND


def test_the_context_stays_as_it_is(session: pg.Session) -> None:
    session.eval([5, 6, 7])
    session.embed(TEXTS)
    assert session.tokens.tolist() == [5, 6, 7]
    found = session.eval([8])
    session.reset()
    assert nrmse(found, session.eval([5, 6, 7, 8])) <= BOUND


def test_adapters_count(model: pg.Model, nano_f32: Path, tmp_path: Path) -> None:
    pairs = random_pairs(nano_f32, ["blk.0.ffn_down.weight"])
    whole = merged(nano_f32, tmp_path / "merged.gguf", [(pairs, 3)])
    lora = pg.LoraAdapter(model, write_lora(tmp_path / "lora.gguf", "phi3", pairs))
    vector = pg.ControlVector.from_arrays({1: np.full(256, 0.1)})
    with pg.Model(whole) as other, exact_session(other) as session:
        wanted = [session.embed(TEXTS)]
        session.set_control_vector(vector)
        wanted.append(session.embed(TEXTS))
    with exact_session(model) as session:
        plain = session.embed(TEXTS)
        session.set_lora([lora])
        assert nrmse(session.embed(TEXTS), wanted[0]) <= BOUND
        session.set_control_vector(vector)
        assert nrmse(session.embed(TEXTS), wanted[1]) <= BOUND
        session.set_lora([])
        session.set_control_vector(None)
        assert nrmse(session.embed(TEXTS), plain) <= BOUND
        assert nrmse(plain, wanted[0]) >= 0.01 and nrmse(wanted[0], wanted[1]) >= 0.01


def test_arguments(session: pg.Session) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "must be a text or a sequence"),
        (3, {}, "must be a text or a sequence"),
        (None, {}, "must be a text or a sequence"),
        (["a", []], {}, "text 1 has no tokens"),
        ([[2048]], {}, "not in the vocabulary"),
        ([[-1]], {}, "in no vocabulary"),
        ([["a"]], {}, "token ids are"),
        (["a", "\ud800"], {}, "lone surrogates"),
        ("a", {"pooling": "max"}, "pooling is 'max'"),
        ("a", {"pooling": 1}, "pooling is 1"),
        ("a", {"normalize": 2}, "normalize is 2"),
    ]
    for texts, settings, message in cases:
        with pytest.raises(pg.InputError, match=message):
            session.embed(texts, **settings)
    assert session.embed("a").shape == (1, 256)
    session.close()
    with pytest.raises(pg.SessionError, match="closed"):
        session.embed("a")


def test_threads_are_the_sessions(model: pg.Model) -> None:
    vectors = []
    for threads in (1, 2):
        with pg.Session(model, n_ctx=64, threads=threads) as session:
            vectors.append(session.embed(TEXTS))
    assert nrmse(vectors[1], vectors[0]) <= BOUND


def test_ctrl_c(model: pg.Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="phiggml")
    with pg.Session(model, n_ctx=1024) as session:
        texts = [list(range(3, 1003))] * 400
        threading.Timer(0.2, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            session.embed(texts)
        assert session.embed("a").shape == (1, 256)
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_bert_is_what_numpy_computes(tmp_path: Path) -> None:
    small = bert()
    with pg.Session(small.write(tmp_path / "bert.gguf")) as session:
        assert session.n_ctx == embedding_models.N_CTX
        texts = ["The cats sat.", "dog", "the dog sat " * 7]
        rows = session.embed(texts, pooling="none", normalize=False)
        for text, row in zip(texts, rows, strict=True):
            tokens = session.model.tokenize(text)
            assert tokens[0] == 2 and tokens[-1] == 3
            wanted = bert_hidden(small, tokens).astype(np.float32)
            assert nrmse(row, wanted) <= BOUND_GELU
        assert session.embed(texts * 20).shape == (60, embedding_models.N_EMBD)
        with pytest.raises(pg.InputError, match="text 1 has 26 tokens"):
            session.embed(["a", "the dog sat " * 8])


@pytest.mark.parametrize(
    ("number", "pooling"), [(0, "mean"), (1, "mean"), (2, "cls"), (3, "last"), (4, "mean")]
)
def test_the_files_own_pooling(number: int, pooling: Any, tmp_path: Path) -> None:
    small = bert(**{"bert.pooling_type": np.uint32(number)})
    with pg.Session(small.write(tmp_path / "bert.gguf")) as session:
        text = "The cats sat."
        assert np.array_equal(
            session.embed(text, pooling=None), session.embed(text, pooling=pooling)
        )


def test_models_that_only_embed_generate_nothing(tmp_path: Path) -> None:
    with pg.Session(bert().write(tmp_path / "bert.gguf")) as session:
        vector = pg.ControlVector.from_arrays({1: np.ones(embedding_models.N_EMBD)})
        for call in (
            lambda: session.eval([2, 5, 3]),
            lambda: session.generate("the cat", max_tokens=1),
            lambda: session.set_control_vector(vector),
        ):
            with pytest.raises(pg.UnsupportedError):
                call()
        assert session.tokens.tolist() == []
        session.reset()
        assert len(session.embed("the cat")) == 1


def test_models_that_only_embed_have_no_other_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def contexts() -> int:
        return sum("constructing llama_context" in line for line in caplog.messages)

    with pg.Model(bert().write(tmp_path / "bert.gguf")) as model:
        caplog.set_level(logging.DEBUG, logger="phiggml")
        with pg.Session(model, n_seq_max=2, threads=2) as session:
            assert contexts() == 0
            session.fork(0, 1)
            session.truncate(0)
            session.set_lora([])
            session.set_control_vector(None)
            session.reset(sequence=1)
            session.embed("the cat")
            assert contexts() == 1


def test_a_file_that_says_bert_looks_back(tmp_path: Path) -> None:
    """It has no cache all the same, and takes each text as a whole."""
    small = bert(**{"bert.attention.causal": np.bool_(True)})
    with pg.Session(small.write(tmp_path / "bert.gguf")) as session:
        assert session.embed(["the cat"] * 40).shape[0] == 40


def test_decoders_that_look_ahead(tmp_path: Path) -> None:
    """They have a cache, and each token's vector depends on those after it."""
    small = small_model("llama")
    with pg.Session(small.write(tmp_path / "back.gguf"), n_ctx=128) as session:
        back = session.embed([range(3, 9), range(3, 10)], pooling="cls")
    small.metadata["llama.attention.causal"] = np.bool_(False)
    with pg.Session(small.write(tmp_path / "ahead.gguf"), n_ctx=128) as session:
        ahead = session.embed([range(3, 9), range(3, 10)], pooling="cls")
        texts = [range(3, 3 + n) for n in (100, 5, 120, 70)] * 3
        together = session.embed(texts)
        for text, vector in zip(texts, together, strict=True):
            assert nrmse(vector, session.embed([text])[0]) <= 1e-3
        with pytest.raises(pg.UnsupportedError, match="generates no text"):
            session.eval([3])
    assert nrmse(back[0], back[1]) <= BOUND
    assert nrmse(ahead[0], ahead[1]) >= 1e-2


def test_a_table_of_positions_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(pg.InputError, match="a table of 24 positions"):
        pg.Session(bert().write(tmp_path / "bert.gguf"), n_ctx=25)


def test_recurrent_models(tmp_path: Path) -> None:
    with pg.Session(mamba().write(tmp_path / "mamba.gguf"), n_ctx=128) as session:
        texts = [range(3, 3 + n) for n in (100, 5, 60)] * 8
        together = session.embed(texts)
        for text, vector in zip(texts[:3], together, strict=False):
            assert nrmse(vector, session.embed([text])[0]) <= BOUND


def test_vectors_that_are_not_finite(tmp_path: Path) -> None:
    small = small_model("llama")
    small.tensors["output_norm.weight"][3] = np.nan
    with (
        pg.Session(small.write(tmp_path / "nan.gguf"), n_ctx=64) as session,
        pytest.raises(pg.SessionError, match="not finite"),
    ):
        session.embed([[3, 4]])
