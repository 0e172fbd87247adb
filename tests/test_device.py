"""Devices against the CPU: layers, types, caches, splits; PHIGGML_TEST_DEVICE names the devices.

    PHIGGML_TEST_DEVICE=CUDA0 pytest -m plugins tests/test_device.py

Names are those of `phiggml devices`, with commas between; "RPC" is a CPU behind ggml's RPC backend,
which the tests start. A device that is not there fails its tests. The truth is the CPU's float32
product of the very weights that a file holds.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import rpc_device

NAMES = os.environ.get("PHIGGML_TEST_DEVICE", "").split(",")
NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
N_LAYER = 4
LAYERS = [0, 2, "all"]

# Relative errors of logits (nrmse). Devices round activations: to TF32 or F16 where the weights are
# float, to bfloat16 where they are that, to 8 bits where they are quantized, as the CPU does. A
# wrong product gives 0.3 and more.
BOUNDS = {"F32": 0.005, "F16": 0.01, "BF16": 0.03}
BOUND_QUANTIZED = 0.03

pytestmark = pytest.mark.plugins

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def named() -> Iterator[dict[str, str]]:
    """What PHIGGML_TEST_DEVICE asks for -> the device's name."""
    assert NAMES != [""], "PHIGGML_TEST_DEVICE names no device"
    if "RPC" not in NAMES:
        yield _present(NAMES)
        return
    with rpc_device.served() as port:
        rpc_device.connect(port)
        yield _present(NAMES)


def _present(names: list[str]) -> dict[str, str]:
    present = {device.name: device.name for device in pg.devices()}
    for device in pg.devices():
        if device.backend == "RPC":
            present["RPC"] = device.name
    return {name: present[name] for name in names if name in present}


@pytest.fixture(params=NAMES)
def device(request: pytest.FixtureRequest, named: dict[str, str]) -> str:
    assert request.param in named, f"there is no device {request.param!r} here"
    return named[request.param]


@functools.cache
def tokens(n: int = 96) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(3, 2000, n)


@functools.cache
def importances() -> dict[str, npt.NDArray[np.float32]]:
    """Some types cannot be made without; any do."""
    rng = np.random.default_rng(1)
    wide = {"ffn_down": 512}
    names = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    return {
        f"blk.{layer}.{name}.weight": rng.uniform(0.5, 2, wide.get(name, 256)).astype(np.float32)
        for layer in range(N_LAYER)
        for name in names
    } | {"output.weight": np.ones(256, np.float32)}


class Files:
    """phi3-nano in each type, and the float32 logits of the same weights on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truths: dict[str, Logits] = {}

    def file(self, type: str) -> Path:
        """All matrices of the layers and the output in one tensor type."""
        path = self.folder / f"{type}.gguf"
        if not path.exists():
            options = pg.QuantizeOptions(output_type=type)
            pg.convert(
                NANO,
                path,
                "F32",
                overrides={r"^blk\..*(qkv|output|up|down)": type},
                imatrix=importances(),
                options=options,
            )
        return path

    def truth(self, type: str) -> Logits:
        if type not in self.truths:
            path = self.folder / f"{type}-as-F32.gguf"
            again = pg.QuantizeOptions(allow_requantize=True)
            pg.quantize_model(self.file(type), path, "F32", options=again, overwrite=True)
            with pg.Model(path, n_gpu_layers=0, devices=[]) as model:
                self.truths[type] = evaluated(model)
        return self.truths[type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("devices"))


def evaluated(model: pg.Model, **settings: object) -> Logits:
    with pg.Session(model, n_ctx=1024, **settings) as session:  # type: ignore[arg-type]
        return session.eval(tokens(), logits="all")


def relative(found: Logits, wanted: Logits) -> float:
    assert np.isfinite(found).all()
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def held(model: pg.Model, device: str) -> set[str]:
    """Tensors that lie on a device."""
    return {name for name, place in model.placement.items() if place == device}


def is_upper(name: str, n_layers: int) -> bool:
    """Whether a tensor is among the output and the last n_layers - 1 layers, as upstream counts."""
    if name.startswith("output"):
        return n_layers > 0
    return name.startswith("blk.") and int(name.split(".")[1]) > N_LAYER - n_layers


@pytest.mark.parametrize("n_layers", LAYERS)
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_logits_are_those_of_the_cpu(
    device: str, files: Files, type: str, n_layers: int | str
) -> None:
    with pg.Model(files.file(type), n_gpu_layers=n_layers, devices=[device]) as model:  # type: ignore[arg-type]
        n = N_LAYER + 1 if n_layers == "all" else int(n_layers)
        assert held(model, device) == {name for name in model.placement if is_upper(name, n)}
        found = evaluated(model)
    assert relative(found, files.truth(type)) <= BOUNDS.get(type, BOUND_QUANTIZED)


TYPES = [type.name for type in pg.quant_types() if type.can_quantize]


@pytest.mark.parametrize("type", TYPES)
def test_products_of_every_type(device: str, files: Files, type: str) -> None:
    with pg.Model(files.file(type), n_gpu_layers="all", devices=[device]) as model:
        found = evaluated(model)
        with pg.Session(model, n_ctx=64) as session:
            one = session.eval(tokens()[:1])
            session.eval(tokens()[1:7])
            eighth = session.eval(tokens()[7:8])  # a product with a vector takes another kernel
    bound = BOUNDS.get(type, BOUND_QUANTIZED)
    truth = files.truth(type)
    assert relative(found, truth) <= bound
    assert relative(one, truth[0]) <= bound
    assert relative(eighth, truth[7]) <= bound


@pytest.mark.parametrize(("type_k", "type_v"), [("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0")])
def test_the_cache_lies_on_the_device(
    device: str, files: Files, type_k: str, type_v: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pg.Model(files.file("F16"), n_gpu_layers="all", devices=[device]) as model:
        pg.Session(model, n_ctx=64).close()
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="phiggml"):
            found = evaluated(model, type_k=type_k, type_v=type_v, flash_attn=True)
    caches = [line for line in caplog.messages if "KV buffer size" in line]
    assert len(caches) == 1 and device in caches[0], caches
    with pg.Model(files.file("F16"), devices=[]) as model:
        wanted = evaluated(model, type_k=type_k, type_v=type_v, flash_attn=True)
    assert relative(found, wanted) <= (0.01 if type_k == "F16" else 0.05)


def test_the_cache_is_split_as_the_layers_are(
    device: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with pg.Model(files.file("F16"), n_gpu_layers=3, devices=[device]) as model:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="phiggml"):
            evaluated(model)
    caches = [line for line in caplog.messages if "KV buffer size" in line]
    assert len(caches) == 2 and any(device in line for line in caches), caches


@pytest.mark.parametrize("flash_attn", [True, False])
def test_a_long_prompt_in_several_batches(device: str, files: Files, flash_attn: bool) -> None:
    text = tokens(700)
    logits = []
    for devices in ([], [device]):
        layers = "all" if devices else 0
        with (
            pg.Model(files.file("F16"), n_gpu_layers=layers, devices=devices) as model,  # type: ignore[arg-type]
            pg.Session(model, n_ctx=1024, n_batch=256, flash_attn=flash_attn) as session,
        ):
            logits.append(session.eval(text, logits="all"))
    assert relative(logits[1], logits[0]) <= BOUNDS["F16"]


def test_sequences_do_not_touch_each_other(device: str, files: Files) -> None:
    truth = files.truth("F16")
    with (
        pg.Model(files.file("F16"), n_gpu_layers="all", devices=[device]) as model,
        pg.Session(model, n_ctx=256, n_seq_max=2) as session,
    ):
        session.eval(tokens()[:40], sequence=0)
        session.eval(tokens()[::-1][:30], sequence=1)
        found = session.eval(tokens()[40:], logits="all", sequence=0)
    assert relative(found, truth[40:]) <= BOUNDS["F16"]


def test_greedy_answers_are_those_of_the_cpu(device: str, files: Files) -> None:
    answers = []
    for devices in ([], [device]):
        layers = "all" if devices else 0
        with (
            pg.Model(files.file("Q8_0"), n_gpu_layers=layers, devices=devices) as model,  # type: ignore[arg-type]
            pg.Session(model, n_ctx=512) as session,
        ):
            question = [{"role": "user", "content": "What is GGUF?"}]
            greedy = pg.Sampling(temperature=0)
            answers.append(session.chat(question, max_tokens=60, sampling=greedy).text)
    assert answers[1] == answers[0] and "GGUF" in answers[0]


def test_tensors_lie_where_overrides_put_them(device: str, files: Files) -> None:
    path = files.file("Q4_K")
    overrides = [(r"blk\.[13]\.ffn_(up|down)", "CPU")]
    with pg.Model(path, n_gpu_layers="all", devices=[device], tensor_overrides=overrides) as model:
        on_cpu = {name for name, place in model.placement.items() if place != device}
        found = evaluated(model)
    kept = {f"blk.{layer}.ffn_{part}.weight" for layer in (1, 3) for part in ("up", "down")}
    assert on_cpu == {"token_embd.weight"} | kept
    assert relative(found, files.truth("Q4_K")) <= BOUND_QUANTIZED


def test_auto_takes_all_of_a_small_model(device: str, files: Files) -> None:
    with pg.Model(files.file("Q4_K"), devices=[device]) as model:
        assert held(model, device) == {n for n in model.placement if is_upper(n, N_LAYER + 1)}


def test_layers_are_split_between_devices_by_their_shares(
    named: dict[str, str], files: Files
) -> None:
    """The first of several devices gets a quarter of all layers; the last ones share the rest."""
    assert named.keys() == set(NAMES)
    devices = [named[name] for name in NAMES]
    shares = [1.0] + [3.0 / max(1, len(devices) - 1)] * (len(devices) - 1)
    with pg.Model(
        files.file("Q8_0"), n_gpu_layers="all", devices=devices, tensor_split=shares
    ) as model:
        layers = [model.placement[f"blk.{i}.ffn_up.weight"] for i in range(N_LAYER)]
        ends = model.placement["output.weight"]
        found = evaluated(model)
    # Upstream's rule for layer i of n + 1, the output among them: the first device at which the
    # sum of shares exceeds i / (n + 1).
    sums = np.cumsum(shares) / sum(shares)
    places = [devices[int(np.argmax(sums > i / (N_LAYER + 1)))] for i in range(N_LAYER + 1)]
    assert [*layers, ends] == places
    assert relative(found, files.truth("Q8_0")) <= BOUND_QUANTIZED


def test_the_device_gives_its_memory_back(device: str, files: Files) -> None:
    def free() -> int:
        return next(d.memory_free for d in pg.devices() if d.name == device)

    def used_once() -> None:
        with pg.Model(files.file("F16"), n_gpu_layers="all", devices=[device]) as model:
            evaluated(model)

    used_once()
    before = free()
    for _ in range(5):
        used_once()
    assert before - free() <= 16 << 20
