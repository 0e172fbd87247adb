"""Control vectors: added to the outputs of layers, at the place and in the amount that is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from adapter_files import write_gguf
from logits_reference import BOUND_F32, Logits, exact_session, nrmse
from small_models import N_EMBD, SmallModel, small_model

Array = npt.NDArray[np.float32]
DIFFERENT = 0.1
N_LAYER = 4
TOKENS = np.arange(3, 20)


def direction(layer: int) -> Array:
    return np.random.default_rng(layer).normal(0, 0.5, N_EMBD).astype(np.float32)


def model_of_layers(architecture: str, active: set[int]) -> SmallModel:
    """Of four layers; those that are not active give what they get."""
    model = small_model(architecture)
    model.metadata[model.key(".block_count")] = np.uint32(N_LAYER)
    whole = {name: values for name, values in model.tensors.items() if "blk" not in name}
    layer = {name[6:]: v for name, v in model.tensors.items() if name.startswith("blk.1.")}
    for i in range(N_LAYER):
        for name, values in layer.items():
            ends = name.startswith(("attn_output", "ffn_down")) and i not in active
            whole[f"blk.{i}.{name}"] = np.zeros_like(values) if ends else values * (1 + i % 2)
    whole["token_embd.weight"] = whole["token_embd.weight"].astype(np.float32)
    model.tensors = whole
    return model


def logits(
    model: SmallModel, folder: Path, vector: pg.ControlVector | None = None, **settings: Any
) -> Logits:
    with pg.Model(model.write(folder / "model.gguf")) as loaded, exact_session(loaded) as session:
        session.set_control_vector(vector, **settings)
        return session.eval(TOKENS, logits="all")


@pytest.mark.parametrize("architecture", ["phi3", "phimoe", "phi2", "llama"])
def test_added_after_its_layer(architecture: str, tmp_path: Path) -> None:
    """Where the layers above do nothing, it does not matter after which of them it is added."""
    model = model_of_layers(architecture, {1})
    plain = logits(model, tmp_path)
    found = [
        logits(model, tmp_path, pg.ControlVector.from_arrays({i: direction(1)})) for i in (1, 2, 3)
    ]
    assert nrmse(found[0], plain) >= DIFFERENT
    for other in found[1:]:
        assert nrmse(other, found[0]) <= BOUND_F32


@pytest.mark.parametrize("architecture", ["phi3", "phimoe", "phi2", "llama"])
def test_added_before_the_next(architecture: str, tmp_path: Path) -> None:
    """Where the layers below do nothing, it could as well be in the embedding."""
    model = model_of_layers(architecture, {2, 3})
    found = logits(model, tmp_path, pg.ControlVector.from_arrays({1: direction(1)}))
    model.tensors["token_embd.weight"] += direction(1)
    assert nrmse(found, logits(model, tmp_path)) <= BOUND_F32


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_amounts(architecture: str, tmp_path: Path) -> None:
    """Where no layer does anything, in numpy: the head of the norm of embedding and vectors."""
    model = model_of_layers(architecture, set())
    # A head of F16 would round what it is multiplied with.
    model.tensors["output.weight"] = model.tensors["output.weight"].astype(np.float32)

    def wanted(amounts: Mapping[int, float]) -> Logits:
        hidden = model.tensors["token_embd.weight"][TOKENS].astype(np.float64)
        hidden += sum(amount * direction(i) for i, amount in amounts.items())
        hidden /= np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + 1e-5)
        norm, head = (model.tensors[f"{name}.weight"] for name in ("output_norm", "output"))
        return (hidden * norm @ head.T.astype(np.float64)).astype(np.float32)

    vector = pg.ControlVector.from_arrays({i: direction(i) for i in (1, 2, 3)})
    part = pg.ControlVector.from_arrays({2: direction(2)})
    cases: list[tuple[pg.ControlVector | None, dict[str, Any], dict[int, float]]] = [
        (None, {}, {}),
        (vector, {}, {1: 1, 2: 1, 3: 1}),
        (vector, {"scale": -0.5}, {1: -0.5, 2: -0.5, 3: -0.5}),
        (vector, {"scale": 0}, {}),
        (vector, {"first_layer": 2}, {2: 1, 3: 1}),
        (vector, {"last_layer": 2}, {1: 1, 2: 1}),
        (vector, {"first_layer": 2, "last_layer": 2, "scale": 3}, {2: 3}),
        (vector, {"first_layer": 3, "last_layer": 1}, {}),
        (part, {}, {2: 1}),
        (0.5 * vector + part * np.float32(0.25), {}, {1: 0.5, 2: 0.75, 3: 0.5}),
        (vector + part, {"scale": 2}, {1: 2, 2: 4, 3: 2}),
    ]
    for given, settings, amounts in cases:
        assert nrmse(logits(model, tmp_path, given, **settings), wanted(amounts)) <= BOUND_F32


def test_what_is_in_the_context_is_evaluated_again(tmp_path: Path) -> None:
    """Set, replaced by one of fewer layers, and taken back in the middle of a text."""
    path = model_of_layers("phi3", {0, 1, 2, 3}).write(tmp_path / "model.gguf")
    vector = pg.ControlVector.from_arrays({i: direction(i) for i in (1, 2, 3)})
    part = pg.ControlVector.from_arrays({1: direction(9)})
    with pg.Model(path) as model, exact_session(model) as session:
        session.eval(TOKENS[:5])
        for given in (vector, part, None, part):
            session.set_control_vector(given)
            found = session.eval(TOKENS[5:])
            with exact_session(model) as fresh:
                fresh.set_control_vector(given)
                assert nrmse(found, fresh.eval(TOKENS)) <= BOUND_F32
            session.reset()
            session.eval(TOKENS[:5])
        assert session.tokens.tolist() == TOKENS[:5].tolist()


def test_arrays() -> None:
    values = np.arange(4, dtype=np.float32)
    vector = pg.ControlVector.from_arrays({2: values, np.int64(1): [1, 2, 3, 4]})
    values[:] = 9
    assert vector[2].tolist() == [0, 1, 2, 3] and vector[1].dtype == np.float32
    assert len(vector) == 2 and set(vector) == {1, 2} and vector.n_embd == 4
    assert repr(vector) == "<ControlVector of layers 1 to 2, 4 numbers each>"
    assert (vector + vector)[2].tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="read-only"):
        vector[2][0] = 1
    with pytest.raises(TypeError):
        vector + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        vector * "2"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "there are none"),
        ({0: [1.0]}, "layer 0 must be"),
        ({512: [1.0]}, "layer 512 must be"),
        ({True: [1.0]}, "layer True must be"),
        ({"1": [1.0]}, "layer '1' must be"),
        ({1: [[1.0]]}, "one axis of finite numbers"),
        ({1: 1.0}, "one axis of finite numbers"),
        ({1: [np.nan]}, "one axis of finite numbers"),
        ({1: [1e39]}, "one axis of finite numbers"),
        ({1: ["x"]}, "one axis of finite numbers"),
        ({1: []}, "as many numbers"),
        ({1: [1.0], 2: [1.0, 2.0]}, r"they have \[1, 2\]"),
    ],
)
def test_wrong_arrays(arrays: Any, message: str) -> None:
    with pytest.raises(pg.InputError, match=message):
        pg.ControlVector.from_arrays(arrays)


def test_arguments(nano_model: pg.Model) -> None:
    n_layer = nano_model.n_layer
    fits = pg.ControlVector.from_arrays({1: np.ones(256)})
    with pg.Session(nano_model, n_ctx=64) as session:
        before = session.eval([5, 6])
        cases: list[tuple[Any, dict[str, Any], str]] = [
            (pg.ControlVector.from_arrays({1: np.ones(255)}), {}, "of 255 numbers"),
            (pg.ControlVector.from_arrays({n_layer: np.ones(256)}), {}, f"up to layer {n_layer}"),
            (fits, {"scale": float("nan")}, "a scale is nan"),
            (fits, {"scale": 10**400}, "a scale is"),
            (fits, {"scale": "1"}, "a scale is"),
            (3e38 * fits, {"scale": 2}, "all finite"),
            (fits, {"first_layer": 0}, "first_layer is 0"),
            (fits, {"last_layer": n_layer}, "last_layer is"),
            (fits, {"last_layer": 1.5}, "last_layer is 1.5"),
            ({1: np.ones(256)}, {}, "must be a ControlVector"),
        ]
        for vector, settings, message in cases:
            with pytest.raises(pg.InputError, match=message):
                session.set_control_vector(vector, **settings)
        session.reset()
        assert np.array_equal(session.eval([5, 6]), before)
    with pytest.raises(pg.SessionError, match="closed"):
        session.set_control_vector(fits)


def test_a_model_of_one_layer(tmp_path: Path) -> None:
    model = model_of_layers("phi3", {0})
    model.metadata["phi3.block_count"] = np.uint32(1)
    model.tensors = {n: v for n, v in model.tensors.items() if not n.startswith(("blk.1", "blk.2"))}
    model.tensors = {n: v for n, v in model.tensors.items() if not n.startswith("blk.3")}
    with pg.Session(model.write(tmp_path / "one.gguf"), n_ctx=64) as session:
        session.set_control_vector(None)
        with pytest.raises(pg.InputError, match="the model has layers 0 to 0"):
            session.set_control_vector(pg.ControlVector.from_arrays({1: np.ones(N_EMBD)}))
        assert len(session.eval([3])) == session.model.n_vocab


def write_directions(path: Path, tensors: Mapping[str, Any], **changes: Any) -> Path:
    metadata = {"general.architecture": "controlvector", "controlvector.model_hint": "phi3"}
    return write_gguf(path, metadata | changes, tensors)


def test_files(tmp_path: Path) -> None:
    """As llama-cvector-generator writes them."""
    wanted = {i: direction(i) for i in (3, 1, 2)}
    path = write_directions(
        tmp_path / "v.gguf", {f"direction.{i}": values for i, values in wanted.items()}
    )
    vector = pg.ControlVector(path)
    path.unlink()
    assert list(vector) == [3, 1, 2]
    assert all(np.array_equal(vector[i], values) for i, values in wanted.items())


ONE = np.ones(4, np.float32)
FAULTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "none": ({}, "has no directions"),
    "layer 0": ({"direction.0": ONE}, r"direction\.0 is no direction"),
    "layer 512": ({"direction.512": ONE}, r"direction\.512 is no direction"),
    "layer beyond numbers": ({"direction.99999999999999999999": ONE}, "is no direction"),
    "layer below": ({"direction.-1": ONE}, "is no direction"),
    "number and more": ({"direction.1x": ONE}, "is no direction"),
    "other digits": ({"direction.\u0663": ONE}, "is no direction"),
    "number twice": ({"direction.1": ONE, "direction.01": ONE}, r"direction\.01 is no"),
    "another name": ({"x\x1b[31m": ONE}, r"x\\x1b\[31m is no direction"),
    "two axes": ({"direction.1": np.ones((2, 4), np.float32)}, r"shape \[2, 4\]"),
    "F16": ({"direction.1": ONE.astype(np.float16)}, "is F16 of shape"),
    "I32": ({"direction.1": ONE.astype(np.int32)}, "is I32 of shape"),
    "lengths": ({"direction.1": ONE, "direction.2": np.ones(5, np.float32)}, "of one length"),
    "NaN": ({"direction.1": ONE * np.nan}, "holds NaN"),
    "infinity": ({"direction.1": ONE * np.inf}, "holds NaN"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_files(name: str, tmp_path: Path) -> None:
    tensors, message = FAULTS[name]
    path = write_directions(tmp_path / "v.gguf", tensors)
    with pytest.raises(pg.FormatError, match=message) as error:
        pg.ControlVector(path)
    assert error.value.path == str(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = write_directions(tmp_path / "v.gguf", {"direction.1": ONE, "direction.2": ONE})
    whole = path.read_bytes()
    with pg.GGUFFile(path) as file:
        end = file.tensors["direction.2"].offset + ONE.nbytes
    for n in range(end):
        path.write_bytes(whole[:n])
        with pytest.raises(pg.FormatError):
            pg.ControlVector(path)
    for n in range(len(whole)):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ (1 << n % 8)]) + whole[n + 1 :])
        try:
            vector = pg.ControlVector(path)
        except (pg.FormatError, pg.UnsupportedError):
            continue
        assert set(vector) <= set(range(1, 512)) and vector.n_embd == 4


def test_of_a_model(nano_f16: Path) -> None:
    with pytest.raises(pg.FormatError, match="must be 'controlvector'"):
        pg.ControlVector(nano_f16)
    with pytest.raises(FileNotFoundError):
        pg.ControlVector(nano_f16.with_name("none.gguf"))
