"""Sessions that are saved and loaded go on as those that never were, to the last bit."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import BOUND_F32, DATA, nrmse
from small_models import N_EMBD, N_LAYER, N_VOCAB, small_model
from test_session_recurrent import mamba

LINE = 128

Tokens = npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pg.Model]:
    folder = tmp_path_factory.mktemp("models")
    loaded: dict[str, pg.Model] = {}

    def model(name: str) -> pg.Model:
        if name not in loaded:
            path = folder / f"{name}.gguf"
            if name.endswith("-tiny"):
                pg.convert(DATA / name, path, "F32")
            elif name == "mamba":
                mamba().write(path)
            else:
                small_model(name).write(path)
            loaded[name] = pg.Model(path)
        return loaded[name]

    return model


def text(model: pg.Model, n: int) -> Tokens:
    return np.random.default_rng(20240423).integers(3, model.n_vocab, n).astype(np.int32)


def goes_on(model: pg.Model, path: Path, n: int = 40, **settings: Any) -> None:
    """Saves after n tokens, and compares the logits of ten more, one by one, bit for bit."""
    tokens = text(model, n + 10)
    with pg.Session(model, **settings) as session:
        session.eval(tokens[:n])
        session.save(path)
        expected = [session.eval([token]) for token in tokens[n:]]
    with pg.Session(model, **settings) as session:
        session.load(path)
        assert session.tokens.tolist() == tokens[:n].tolist()
        for token, logits in zip(tokens[n:], expected, strict=True):
            assert np.array_equal(session.eval([token]), logits)


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("types", [("F16", "F16"), ("F32", "F32"), ("F16", "F32"), ("BF16", "F16")])
def test_types(
    models: Callable[[str], pg.Model], tmp_path: Path, types: tuple[str, str], flash_attn: bool
) -> None:
    type_k, type_v = types
    settings = {"type_k": type_k, "type_v": type_v, "flash_attn": flash_attn, "threads": 1}
    goes_on(models("phi3"), tmp_path / "state", **settings)


@pytest.mark.parametrize("types", [("Q8_0", "Q8_0"), ("Q4_0", "Q5_1"), ("Q8_0", "F16")])
def test_quantized_types(nano_model: pg.Model, tmp_path: Path, types: tuple[str, str]) -> None:
    type_k, type_v = types
    goes_on(nano_model, tmp_path / "state", n_ctx=256, type_k=type_k, type_v=type_v)


@pytest.mark.parametrize("name", ["phi2", "phimoe", "llama", "qwen2", "gemma"])
def test_architectures(models: Callable[[str], pg.Model], tmp_path: Path, name: str) -> None:
    goes_on(models(name), tmp_path / "state")


@pytest.mark.parametrize("n", [LINE - 20, LINE - 5, LINE, LINE + 1, LINE + 40])
def test_both_sides_of_the_line(models: Callable[[str], pg.Model], tmp_path: Path, n: int) -> None:
    goes_on(models("phi3-128k-tiny"), tmp_path / "state", n, n_ctx=256)


@pytest.mark.parametrize("name", ["phi3-window-tiny", "slimmoe-tiny"])
@pytest.mark.parametrize("n", [40, 150])
def test_sliding_windows(
    models: Callable[[str], pg.Model], tmp_path: Path, name: str, n: int
) -> None:
    """Also what lies outside the window of 64 is there, for a text that is cut back."""
    path = tmp_path / "state"
    goes_on(models(name), path, n, n_ctx=256)
    n_layer = models(name).n_layer
    assert path.stat().st_size > 120 + n * n_layer * 64


def test_one_of_several_sequences(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    """From one number to another; its neighbours stay as they are."""
    model, path = models("phi3-128k-tiny"), tmp_path / "state"
    tokens, other = text(model, 60), text(model, 90)[::-1].copy()
    with pg.Session(model, n_ctx=256, n_seq_max=3) as session:
        session.eval(other, sequence=0)
        session.eval(tokens[:50], sequence=1)
        session.save(path, sequence=1)
        expected = session.eval(tokens[50:], sequence=1)
        beside = session.eval([7], sequence=0)
    with pg.Session(model, n_ctx=256, n_seq_max=3) as session:
        session.eval(other, sequence=0)
        session.eval(other[:70], sequence=2)
        session.load(path, sequence=2)
        assert session.sequence_tokens(2).tolist() == tokens[:50].tolist()
        assert np.array_equal(session.eval(tokens[50:], sequence=2), expected)
        assert np.array_equal(session.eval([7], sequence=0), beside)
        assert session.sequence_tokens(1).tolist() == []


def test_a_fork_is_saved_before_it_is_copied(
    models: Callable[[str], pg.Model], tmp_path: Path
) -> None:
    """llama.cpp puts the copy off until the next decode."""
    model, path = models("phi3"), tmp_path / "state"
    tokens = text(model, 50)
    with pg.Session(model, n_ctx=64, n_seq_max=2) as session:
        session.eval(tokens[:40])
        session.fork(0, 1)
        session.save(path, sequence=1)
        expected = session.eval(tokens[40:])
        session.fork(0, 1)
        session.load(path, sequence=0)
        assert session.sequence_tokens(1).tolist() == tokens.tolist()
        assert np.array_equal(session.eval(tokens[40:]), expected)


def test_a_text_that_has_lost_its_middle(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    """Its tokens lie scattered in the cache, to be turned by the next decode."""
    model, path = models("llama"), tmp_path / "state"
    tokens = text(model, 80)
    settings = {"n_ctx": 64, "type_k": "F32", "type_v": "F32", "overflow": "shift"}
    with pg.Session(model, **settings) as session:
        session.eval(tokens[:64])
        session.eval(tokens[64:70])
        held = session.tokens
        session.save(path)
        expected = session.eval(tokens[70:])
    assert len(held) < 64
    for more in ({}, {"n_seq_max": 2}):
        with pg.Session(model, **settings, **more) as session:
            session.load(path)
            assert session.tokens.tolist() == held.tolist()
            assert nrmse(session.eval(tokens[70:]), expected) <= BOUND_F32


@pytest.mark.parametrize("saved_full", [True, False])
@pytest.mark.parametrize("loaded_full", [True, False])
def test_short_caches(
    models: Callable[[str], pg.Model], tmp_path: Path, saved_full: bool, loaded_full: bool
) -> None:
    """A short one has let go of the beginning: it is neither saved nor put there."""
    model, path = models("phi3-window-tiny"), tmp_path / "state"
    tokens = text(model, 700)
    settings = {"n_ctx": 1024, "n_batch": 32, "type_k": "F32", "type_v": "F32"}
    with pg.Session(model, swa_full=saved_full, **settings) as session:
        session.eval(tokens[:690])
        session.save(path)
        expected = session.eval(tokens[690:])
    assert (path.stat().st_size > 120 + 4 * 690 + 32) == saved_full
    with pg.Session(model, swa_full=loaded_full, **settings) as session:
        session.load(path)
        assert nrmse(session.eval(tokens[690:]), expected) <= BOUND_F32


def test_a_prompt_that_begins_as_what_was_loaded(nano_model: pg.Model, tmp_path: Path) -> None:
    greedy = pg.Sampling(temperature=0)
    with pg.Session(nano_model) as session:
        first = session.generate("What is GGUF?", max_tokens=8, sampling=greedy)
        session.save(tmp_path / "state")
    with pg.Session(nano_model) as session:
        session.load(tmp_path / "state")
        again = session.generate("What is GGUF?", max_tokens=8, sampling=greedy)
    assert again.tokens == first.tokens


def test_another_length_of_context(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    model, path = models("phi3"), tmp_path / "state"
    tokens = text(model, 50)
    with pg.Session(model, n_ctx=64) as session:
        session.eval(tokens[:40])
        session.save(path)
        expected = session.eval(tokens[40:])
    with pg.Session(model, n_ctx=128) as session:
        session.load(path)
        assert np.array_equal(session.eval(tokens[40:]), expected)
    with pg.Session(model, n_ctx=32) as session:
        session.eval(tokens[:5])
        with pytest.raises(pg.SessionError, match="40 tokens do not fit into n_ctx = 32"):
            session.load(path)
        assert session.tokens.tolist() == tokens[:5].tolist()


def test_nothing_is_a_state_too(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    model, path = models("phi3"), tmp_path / "state"
    with pg.Session(model) as session:
        session.save(path)
        expected = session.eval([5])
        session.load(path)
        assert session.tokens.tolist() == []
        assert np.array_equal(session.eval([5]), expected)


def test_a_state_is_evaluated_again_where_there_is_no_cache(
    models: Callable[[str], pg.Model], tmp_path: Path
) -> None:
    model, path = models("mamba"), tmp_path / "state"
    tokens = text(model, 50)
    with pg.Session(model) as session:
        session.eval(tokens[:40])
        session.save(path)
        session.reset()
        expected = session.eval(tokens)
        session.load(path)
        assert session.tokens.tolist() == tokens[:40].tolist()
        assert np.array_equal(session.eval(tokens[40:]), expected)
    assert path.stat().st_size == 120 + 4 * 40 + 32


def test_adapted_sessions_evaluate_again(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    """Numbers are the model's own: with a control vector neither written nor taken."""
    model = models("phi3")
    tokens = text(model, 30)
    directions = {1: np.full(N_EMBD, 0.5, np.float32)}
    vector = pg.ControlVector.from_arrays(directions)
    plain, adapted = tmp_path / "plain", tmp_path / "adapted"
    with pg.Session(model) as session:
        session.eval(tokens[:20])
        session.save(plain)
        session.set_control_vector(vector)
        session.save(adapted)
        expected = session.eval(tokens[20:])
    assert adapted.stat().st_size == 120 + 4 * 20 + 32 < plain.stat().st_size
    for path in (plain, adapted):
        with pg.Session(model) as session:
            session.set_control_vector(vector)
            session.load(path)
            assert np.array_equal(session.eval(tokens[20:]), expected)


def test_a_call_that_was_loaded_has_no_logits(
    models: Callable[[str], pg.Model], tmp_path: Path
) -> None:
    """A stream that is under way does not go on with another text."""
    path = tmp_path / "state"
    with pg.Session(models("phi3")) as session:
        session.eval([5, 6])
        session.save(path)
        stream = session.stream([1, 5], max_tokens=9)
        next(stream)
        session.load(path)
        with pytest.raises(pg.SessionError, match="used for something else"):
            list(stream)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"type_k": "F32"}, "type_k = F16, and the session has F32"),
        ({"type_v": "F32"}, "type_v = F16, and the session has F32"),
        ({"flash_attn": False}, "with flash attention, and the session computes without"),
    ],
)
def test_another_cache(
    models: Callable[[str], pg.Model], tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    model, path = models("phi3"), tmp_path / "state"
    with pg.Session(model, flash_attn=True) as session:
        session.eval([5, 6, 7])
        session.save(path)
    with pg.Session(model, **{"flash_attn": True, **settings}) as session:
        before = session.eval([9, 8])
        with pytest.raises(pg.SessionError, match=sentence):
            session.load(path)
        assert session.tokens.tolist() == [9, 8]
        after = session.eval([4])
        session.reset()
        assert np.array_equal(session.eval([9, 8]), before)
        assert np.array_equal(session.eval([4]), after)


@pytest.mark.parametrize("change", ["name", "weight", "vocabulary"])
def test_another_model(models: Callable[[str], pg.Model], tmp_path: Path, change: str) -> None:
    path = tmp_path / "state"
    with pg.Session(models("phi3")) as session:
        session.eval([5, 6, 7])
        session.save(path)
    other = small_model("phi3")
    if change == "name":
        other.metadata["general.name"] = "another"
    elif change == "weight":
        other.tensors[f"blk.{N_LAYER - 1}.ffn_down.weight"][-1, -1] += 1
    else:
        other.metadata["tokenizer.ggml.tokens"][N_VOCAB - 1] = "another"
    session = pg.Session(other.write(tmp_path / "other.gguf"))
    with session, pytest.raises(pg.SessionError, match="saved with another model"):
        session.load(path)


def test_the_same_model_in_parts(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pg.Session(models("phi3")) as session:
        session.eval([5, 6, 7])
        session.save(path)
    part, _ = small_model("phi3").write_split(tmp_path)
    with pg.Session(part) as session:
        session.load(path)
        assert session.tokens.tolist() == [5, 6, 7]


def test_files(models: Callable[[str], pg.Model], tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pg.Session(models("phi3")) as session:
        session.eval([5, 6, 7])
        session.save(path)
        before = path.read_bytes()
        session.eval([8])
        with pytest.raises(FileExistsError):
            session.save(path)
        assert path.read_bytes() == before
        session.save(path, overwrite=True)
        session.reset()
        session.load(path)
        assert session.tokens.tolist() == [5, 6, 7, 8]
        with pytest.raises(FileNotFoundError):
            session.load(tmp_path / "nothing")
        with pytest.raises(pg.InputError, match="no regular file"):
            session.load(tmp_path)
        for call, more in ((session.save, {"overwrite": True}), (session.load, {})):
            with pytest.raises(pg.InputError, match="a path is text"):
                call(b"state")  # type: ignore[operator]
            with pytest.raises(pg.InputError, match="sequence is"):
                call(path, sequence=1, **more)  # type: ignore[operator]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    with pytest.raises(pg.SessionError, match="it is closed"):
        session.save(tmp_path / "new")


def test_disk_full(
    models: Callable[[str], pg.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = models("phi3"), tmp_path / "state"
    write, n_written = os.write, 0

    def full(descriptor: int, data: Any) -> int:
        nonlocal n_written
        n_written += len(data)
        if n_written > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with pg.Session(model) as session:
        session.eval(text(model, 40))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left") as caught:
                session.save(path)
        assert caught.value.filename == str(path)
        assert list(tmp_path.iterdir()) == []
        session.save(path)
        session.load(path)


def test_an_interrupted_load(
    models: Callable[[str], pg.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody uses a session that is being loaded; one that was not keeps its text."""
    model, path = models("phi3"), tmp_path / "state"
    tokens, n_calls = text(model, 40), 0
    with pg.Session(model) as session:
        session.eval(tokens)
        session.save(path)
        session.reset()
        expected = session.eval(tokens[10:30])

        def interrupted(*_: Any) -> bool:
            nonlocal n_calls
            n_calls += 1
            with pytest.raises(pg.SessionError, match="another thread"):
                session.eval([5])
            if n_calls == 2:
                raise KeyboardInterrupt
            return True

        session.reset()
        session.eval(tokens[10:29])
        with monkeypatch.context() as patch:
            patch.setattr("phiggml._core.session_state.has_finite_numbers", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.load(path)
        assert session.tokens.tolist() == tokens[10:29].tolist()
        assert np.array_equal(session.eval(tokens[29:30]), expected)
