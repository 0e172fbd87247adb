"""Several sequences in one context, and the line of long rope that each may cross by itself."""

from __future__ import annotations

import _thread
import logging
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import DATA, Logits, exact_session, nrmse

LINE = 128
# Batches of other sizes add in another order; the two sides of the line differ by 0.1 and more.
BOUND = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    path = tmp_path_factory.mktemp("sequences") / "phi3-128k.gguf"
    pg.convert(DATA / "phi3-128k-tiny", path, "F32")
    return pg.Model(path)


@pytest.fixture(scope="module")
def tokens(model: pg.Model) -> npt.NDArray[np.int32]:
    return np.random.default_rng(20240423).integers(3, model.n_vocab, 300).astype(np.int32)


def at_once(model: pg.Model, tokens: npt.NDArray[np.int32]) -> Logits:
    with exact_session(model, n_ctx=512) as session:
        return session.eval(tokens)


def test_sequences_do_not_see_each_other(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    """Each token by token, in turn, so that they cross the line at different calls."""
    starts, n_steps = (LINE - 4, 20, LINE + 30), 8
    with exact_session(model, n_ctx=256, n_seq_max=3) as session:
        texts = [np.roll(tokens, -i)[: start + n_steps] for i, start in enumerate(starts)]
        for i, start in enumerate(starts):
            session.eval(texts[i][:start], sequence=i)
        for step in range(n_steps):
            for i, start in enumerate(starts):
                end = start + step + 1
                found = session.eval(texts[i][end - 1 : end], sequence=i)
                assert nrmse(found, at_once(model, texts[i][:end])) <= BOUND, (i, end)
        for i, text in enumerate(texts):
            assert session.sequence_tokens(i).tolist() == text.tolist()
        assert session.tokens.tolist() == texts[0].tolist()


def test_a_sequence_can_be_forgotten_alone(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    with exact_session(model, n_ctx=256, n_seq_max=2) as session:
        session.eval(tokens[: LINE + 1])
        session.eval(tokens[:9], sequence=1)
        session.reset(sequence=0)
        assert session.tokens.tolist() == []
        assert nrmse(session.eval(tokens[:10]), at_once(model, tokens[:10])) <= BOUND
        found = session.eval(tokens[9:10], sequence=1)
        assert nrmse(found, at_once(model, tokens[:10])) <= BOUND


@pytest.mark.parametrize("sequence", [-1, 2, 2**31, True, "0", None])
def test_a_sequence_that_is_not_there(model: pg.Model, sequence: object) -> None:
    with exact_session(model, n_ctx=64, n_seq_max=2) as session:
        for call in (
            lambda: session.eval([5], sequence=sequence),  # type: ignore[arg-type]
            lambda: session.sequence_tokens(sequence),  # type: ignore[arg-type]
        ):
            with pytest.raises(pg.InputError, match="sequence is"):
                call()
        assert session.eval([5], sequence=1).shape == (model.n_vocab,)


def test_crossing_the_line_is_logged_once(
    model: pg.Model, tokens: npt.NDArray[np.int32], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="phiggml"), pg.Session(model, n_ctx=256) as session:
        session.eval(tokens[:LINE])
        assert not [r for r in caplog.records if "long rope" in r.message]
        for token in tokens[LINE : LINE + 3]:
            session.eval([token])
        (record,) = [r for r in caplog.records if "long rope" in r.message]
    assert record.levelno == logging.DEBUG
    assert "129 tokens" in record.message and "128 tokens are evaluated again" in record.message


def test_logits_asked_for_are_those_of_the_new_tokens(
    model: pg.Model, tokens: npt.NDArray[np.int32]
) -> None:
    """The call that crosses evaluates old tokens too, and gives none of their rows."""
    with pg.Session(model, n_ctx=256, n_batch=32) as session:
        whole = session.eval(tokens[:200], logits="all")
        session.reset()
        session.eval(tokens[:100])
        rows = session.eval(tokens[100:200], logits="all")
    assert rows.shape == (100, model.n_vocab)
    assert nrmse(rows, whole[100:]) <= BOUND


def test_what_fails_at_the_line_leaves_the_sequence(
    model: pg.Model, tokens: npt.NDArray[np.int32]
) -> None:
    with exact_session(model, n_ctx=LINE + 1) as session:
        session.eval(tokens[:LINE])
        with pytest.raises(pg.SessionError, match="no room"):
            session.eval(tokens[LINE : LINE + 2])
        assert len(session.tokens) == LINE
        found = session.eval(tokens[LINE : LINE + 1])
        assert nrmse(found, at_once(model, tokens[: LINE + 1])) <= BOUND


def test_a_graph_serves_on_one_side_only(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    """Those for one token with logits are alike on both sides but for the factors."""
    with exact_session(model, n_ctx=256) as session:
        session.eval(tokens[:LINE])
        for n in (LINE + 1, LINE + 2):
            found = session.eval(tokens[n - 1 : n])
            assert nrmse(found, at_once(model, tokens[:n])) <= BOUND, n
        session.reset()
        for n in range(1, 10):
            found = session.eval(tokens[n - 1 : n])
            assert nrmse(found, at_once(model, tokens[:n])) <= BOUND, n


@pytest.fixture(scope="module")
def slow_line(nano_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pg.Model, int]:
    """phi3-nano with factors of rotary positions; half a second from its line, at one thread."""
    line, half_head = 2500, 32
    path = tmp_path_factory.mktemp("slow_line") / "nano.gguf"
    with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata.exact(key)
        writer.metadata["phi3.rope.scaling.original_context_length"] = np.uint32(line)
        for tensor in file.tensors.values():
            values = tensor.dequantize()
            writer.add_tensor(
                tensor.name, values if values.ndim == 1 else values.astype(np.float16)
            )
        for side, most in (("short", 1), ("long", 3)):
            factors = np.linspace(1, most, half_head, dtype=np.float32)
            writer.add_tensor(f"rope_factors_{side}.weight", factors)
    return pg.Model(path), line


def test_ctrl_c_while_a_sequence_is_evaluated_again(slow_line: tuple[pg.Model, int]) -> None:
    """One token is little work, unless thousands before it are done once more."""
    model, line = slow_line
    text = np.random.default_rng(20240423).integers(3, 1900, line + 1)
    with pg.Session(model, n_ctx=4096, threads=1) as session:
        session.eval(text[:line])
        ctrl_c = threading.Timer(0.1, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            ctrl_c.start()
            session.eval(text[line:])
            ctrl_c.join()
        assert session.tokens.tolist() == text[:line].tolist()
        found = session.eval(text[line:])
        session.reset()
        assert np.array_equal(found, session.eval(text))


def test_an_answer_that_crosses_the_line(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    """Greedy, so each token is the best after one evaluation of all before it."""
    prompt, greedy = tokens[: LINE - 5], pg.Sampling(temperature=0)
    answers = []
    for n_ctx in (256, 4096):
        with exact_session(model, n_ctx=n_ctx) as session:
            answers.append(session.generate(prompt, max_tokens=12, sampling=greedy).tokens)
    assert answers[0] == answers[1]
    for i, token in enumerate(answers[0]):
        before = np.concatenate([prompt, np.array(answers[0][:i], np.int32)])
        assert int(np.argmax(at_once(model, before))) == token
