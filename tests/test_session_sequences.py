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


def test_a_fork_goes_on_by_itself(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    """From before the line, at it and beyond it; the copy is made when it is needed."""
    for n in (20, LINE - 1, LINE, LINE + 20):
        with exact_session(model, n_ctx=256, n_seq_max=3) as session:
            session.eval(tokens[:n])
            session.eval(tokens[40:60], sequence=1)
            session.fork(0, 1)
            session.fork(1, 2)
            session.truncate(n - 5)
            ends = [tokens[200:203], tokens[100:104], tokens[150:151]]
            starts = [tokens[: n - 5], tokens[:n], tokens[:n]]
            for i in (2, 0, 1):
                whole = np.concatenate([starts[i], ends[i]])
                assert nrmse(session.eval(ends[i], sequence=i), at_once(model, whole)) <= BOUND
                assert session.sequence_tokens(i).tolist() == whole.tolist()
            session.fork(0, 0)
            session.fork(2, 0)
            session.reset(sequence=2)
            session.fork(2, 1)
            assert session.sequence_tokens(1).tolist() == []
            whole = np.concatenate([starts[2], ends[2], tokens[9:10]])
            assert nrmse(session.eval(tokens[9:10]), at_once(model, whole)) <= BOUND


def test_a_sequence_is_cut(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    with exact_session(model, n_ctx=256, n_seq_max=2) as session:
        for sequence in (1, 0):
            session.eval(tokens[:200], sequence=sequence)
            for n in (300, 200, LINE + 1, LINE, 50, 1, 0):
                session.truncate(n, sequence=sequence)
                held = tokens[: min(n, 200)]
                assert session.sequence_tokens(sequence).tolist() == held.tolist()
                found = session.eval(tokens[250:252], sequence=sequence)
                truth = at_once(model, np.concatenate([held, tokens[250:252]]))
                assert nrmse(found, truth) <= BOUND, n
                session.truncate(len(held), sequence=sequence)


@pytest.mark.parametrize("places", [[3], [0, 5, 9], [9, 0, 5], [4, 4, 0, 4], [9], list(range(10))])
def test_logits_after_some_of_the_tokens(
    model: pg.Model, tokens: npt.NDArray[np.int32], places: list[int]
) -> None:
    with exact_session(model, n_ctx=256, n_batch=4) as session:
        session.eval(tokens[:7])
        rows = session.eval(tokens[7:17], logits="all")
        for kind in (list, tuple, np.array, lambda p: np.array(p, np.uint8)):
            session.truncate(7)
            found = session.eval(tokens[7:17], logits=kind(places))
            assert found.dtype == np.float32 and found.shape == (len(places), model.n_vocab)
            assert nrmse(found, rows[places]) <= BOUND


def test_no_logits_at_all(model: pg.Model, tokens: npt.NDArray[np.int32]) -> None:
    for none in ([], np.zeros(0, np.int64), ()):
        with exact_session(model) as session:
            assert session.eval(tokens[:20], logits=none).shape == (0, model.n_vocab)
            found = session.eval(tokens[20:21])
            assert nrmse(found, at_once(model, tokens[:21])) <= BOUND


@pytest.mark.parametrize("n", [2, 50, LINE, LINE + 30])
def test_scores_are_log_softmax(model: pg.Model, tokens: npt.NDArray[np.int32], n: int) -> None:
    with exact_session(model) as session:
        logits = session.eval(tokens[:n], logits="all").astype(np.float64)
        session.eval([5, 6])
        score = session.score(tokens[:n])
        assert session.tokens.tolist() == tokens[:n].tolist()
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    truth = logprobs[np.arange(n - 1), tokens[1:n]]
    assert np.array_equal(score.tokens, tokens[:n]) and np.isnan(score.logprobs[0])
    # Of logarithms around -6, in float32.
    assert np.abs(score.logprobs[1:] - truth).max() <= 1e-4
    assert abs(score.total - truth.sum()) <= 1e-4 * n
    assert abs(score.perplexity / np.exp(-truth.mean()) - 1) <= 1e-4


def test_scores_of_little(model: pg.Model) -> None:
    with exact_session(model, n_ctx=32) as session:
        score = session.score([5])
        assert len(score.logprobs) == 1 and score.total == 0 and np.isnan(score.perplexity)
        session.eval([6])
        for tokens, error in (([], pg.InputError), ([5, 10**6], pg.InputError)):
            with pytest.raises(error):
                session.score(tokens)
        with pytest.raises(pg.SessionError, match="33 tokens do not fit into n_ctx = 32"):
            session.score([5] * 33)
        assert session.eval([5]).shape == (model.n_vocab,)
