"""Plans against what a device then holds: layers, overrides, the KV cache, and budgets for "auto".

    PHIGGML_TEST_DEVICE=Vulkan0 pytest -m plugins tests/test_offload_placement.py

The device is named as in tests/test_device.py; Vulkan's that are no GPUs, as lavapipe's, need
GGML_VK_VISIBLE_DEVICES=0, too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import phiggml.model
import rpc_device
from example_programs import example
from small_models import N_LAYER as N_SMALL
from small_models import small_model

NAME = os.environ.get("PHIGGML_TEST_DEVICE", "")
N_LAYER = 4
LAYERS = [0, 2, "all"]
N_CTX = 512
# Of logits against the CPU (nrmse), all weights in F32; a wrong product gives 0.3 and more.
BOUND = 5e-3
# Fewer than 32, from which on upstream has a device compute what lies on the CPU, too.
N_SHORT = 24
MIXTURES = ["phimoe", "llama-moe"]
# Products with experts for more tokens than these make lavapipe (Mesa 22.3) write where it must
# not, and end the process some time later.
N_MIXTURE_BATCH = 16

pytestmark = pytest.mark.plugins

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    assert NAME, "PHIGGML_TEST_DEVICE names no device"
    if NAME == "RPC":
        with rpc_device.served() as port:
            rpc_device.connect(port)
            yield next(d.name for d in pg.devices() if d.backend == "RPC")
        return
    assert NAME in [d.name for d in pg.devices()], f"there is no device {NAME!r} here"
    yield NAME


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with experts, of two layers, in F32."""
    folder = tmp_path_factory.mktemp("mixtures")
    paths = {}
    for name in MIXTURES:
        model = small_model(name)
        model.tensors = {key: values.astype(np.float32) for key, values in model.tensors.items()}
        paths[name] = model.write(folder / f"{name}.gguf")
    return paths


def evaluated(
    path: Path, *, offload_kv: bool = True, n_batch: int = 512, **settings: Any
) -> tuple[Logits, Any]:
    """Logits of a long text, of a short one and of single tokens, and the placement."""
    settings = {"n_gpu_layers": 0 if settings.get("devices") == [] else "all", **settings}
    tokens = np.random.default_rng(0).integers(3, 250, 64)
    with (
        pg.Model(path, **settings) as model,
        pg.Session(model, n_ctx=128, n_batch=n_batch, offload_kv=offload_kv, threads=1) as session,
    ):
        rows = [session.eval(tokens, logits="all")]
        session.reset()
        rows.append(session.eval(tokens[:N_SHORT], logits="all"))
        rows += [session.eval(tokens[i : i + 1])[None] for i in range(N_SHORT, N_SHORT + 4)]
        return np.concatenate(rows), model.placement


def relative(found: Logits, wanted: Logits) -> float:
    assert np.isfinite(found).all()
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def answered(path: Path, **settings: Any) -> str:
    question = [{"role": "user", "content": "What is GGUF?"}]
    with pg.Model(path, **settings) as model, pg.Session(model, n_ctx=N_CTX) as session:
        return session.chat(question, max_tokens=40, sampling=pg.Sampling(temperature=0)).text


def logged(messages: list[str], what: str) -> dict[str, float]:
    """Device -> MiB of buffers that llama.cpp says it has taken; a GPU's host memory is the CPU."""
    found: dict[str, float] = {}
    for line in messages:
        match = re.search(rf"(\S+) {what} buffer size = +([\d.]+) MiB", line)
        if match:
            name = "CPU" if match[1].endswith("_Host") else match[1].partition("[")[0]
            found[name] = found.get(name, 0.0) + float(match[2])
    return found


# what is planned is what happens -----------------------------------------------------------------


@pytest.mark.parametrize("offload_kv", [True, False])
@pytest.mark.parametrize("n_layers", LAYERS)
def test_a_plan_is_what_is_loaded(
    device: str,
    nano_f32: Path,
    n_layers: int | str,
    offload_kv: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"devices": [device], "n_gpu_layers": n_layers}
    session = pg.SessionSettings(n_ctx=N_CTX, offload_kv=offload_kv)
    plan = pg.plan_placement(nano_f32, session=session, **settings)
    n = N_LAYER + 1 if n_layers == "all" else int(n_layers)
    assert (plan.n_gpu_layers, plan.n_layers) == (n, N_LAYER + 1)
    on_device = {int(name.split(".")[1]) for name in plan if "blk" in name and plan[name] == device}
    assert on_device == set(range(N_LAYER + 1 - n, N_LAYER))
    with pg.Model(nano_f32, **settings) as model:
        assert model.placement == plan
        held = [(row.name, row.weights) for row in model.placement.devices]
        assert held == [(row.name, row.weights) for row in plan.devices]
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="phiggml"):
            pg.Session(model, n_ctx=N_CTX, offload_kv=offload_kv).close()
    kv, compute = logged(caplog.messages, "KV"), logged(caplog.messages, "compute")
    assert {row.name for row in plan.devices if row.kv} == set(kv)
    for row in plan.devices:
        assert row.kv / 2**20 == pytest.approx(kv.get(row.name, 0), abs=0.01)
        assert row.compute / 2**20 == pytest.approx(compute.get(row.name, 0), abs=0.03)
    # With a layer on the device its part of the cache is there, or not, as it was asked for.
    assert (device in kv) == (offload_kv and n > 1)


@pytest.mark.parametrize("offload_kv", [True, False])
@pytest.mark.parametrize("n_layers", LAYERS)
def test_logits_are_those_of_the_cpu(
    device: str, nano_f32: Path, n_layers: int | str, offload_kv: bool
) -> None:
    found, _ = evaluated(nano_f32, devices=[device], n_gpu_layers=n_layers, offload_kv=offload_kv)
    wanted, _ = evaluated(nano_f32, devices=[])
    assert relative(found, wanted) <= BOUND


@pytest.mark.parametrize("n_layers", LAYERS)
def test_greedy_answers_are_those_of_the_cpu(
    device: str, nano_f16: Path, n_layers: int | str
) -> None:
    answer = answered(nano_f16, devices=[device], n_gpu_layers=n_layers)
    assert answer == answered(nano_f16, devices=[])
    assert "GGUF" in answer


# experts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_stay_on_the_cpu(device: str, mixtures: dict[str, Path], name: str) -> None:
    overrides = [("ffn_.*_exps", "CPU")]
    found, placement = evaluated(
        mixtures[name], devices=[device], tensor_overrides=overrides, n_batch=N_MIXTURE_BATCH
    )
    kept = {tensor for tensor, place in placement.items() if place == "CPU"}
    experts = {tensor for tensor in placement if "_exps." in tensor}
    assert len(experts) == 3 * N_SMALL
    assert kept == experts | {"token_embd.weight"}
    wanted, _ = evaluated(mixtures[name], devices=[], n_batch=N_MIXTURE_BATCH)
    assert relative(found, wanted) <= BOUND


@pytest.mark.parametrize("name", MIXTURES)
def test_auto_gives_up_experts_first(device: str, mixtures: dict[str, Path], name: str) -> None:
    """With room for all but the experts, for those of the last layer, and for all of them."""
    path, session = mixtures[name], pg.SessionSettings(n_ctx=128)

    def needed(overrides: list[tuple[str, str]]) -> int:
        plan = pg.plan_placement(
            path,
            n_gpu_layers="all",
            devices=[device],
            tensor_overrides=overrides,
            session=session,
        )
        return plan.devices[0].total

    wanted, _ = evaluated(path, devices=[], n_batch=N_MIXTURE_BATCH)
    for n_kept, pattern in ((2, r"ffn_.*_exps"), (1, r"blk\.0\.ffn_.*_exps"), (0, "nothing")):
        budget = needed([(pattern, "CPU")])
        settings: dict[str, Any] = {"devices": [device], "memory": {device: budget}}
        plan = pg.plan_placement(path, session=session, **settings)
        assert plan.devices[0].total == plan.devices[0].budget == budget
        assert plan.n_gpu_layers == N_SMALL + 1
        kept = [tensor for tensor, place in plan.items() if place == "CPU"]
        layers = {int(tensor.split(".")[1]) for tensor in kept if tensor.startswith("blk.")}
        assert layers == set(range(n_kept))
        assert all("_exps." in tensor for tensor in kept if tensor.startswith("blk."))
        found, placement = evaluated(
            path, n_gpu_layers="auto", session=session, n_batch=N_MIXTURE_BATCH, **settings
        )
        assert placement == plan
        assert relative(found, wanted) <= BOUND


# "auto" ------------------------------------------------------------------------------------------


def test_auto_takes_the_most_that_a_budget_allows(device: str, nano_f32: Path) -> None:
    session = pg.SessionSettings(n_ctx=N_CTX)
    settings: dict[str, Any] = {"devices": [device], "session": session}
    needed = [
        pg.plan_placement(nano_f32, n_gpu_layers=n, **settings).devices[0].total
        for n in range(N_LAYER + 2)
    ]
    assert needed == sorted(needed)
    for n, total in enumerate(needed):
        for budget in (total, max(total - 1, 0)):
            plan = pg.plan_placement(nano_f32, memory={device: budget}, **settings)
            fitting = [layers for layers, total in enumerate(needed) if total <= budget]
            assert plan.n_gpu_layers == max(fitting, default=0), (n, budget)
            assert plan.fits and plan.devices[0].total <= budget


def test_auto_loads_by_its_plan(device: str, nano_f32: Path) -> None:
    session = pg.SessionSettings(n_ctx=128)
    settings: dict[str, Any] = {"devices": [device], "session": session}
    whole = pg.plan_placement(nano_f32, n_gpu_layers="all", **settings).devices[0]
    wanted, _ = evaluated(nano_f32, devices=[])
    for budget in (0, whole.total // 2, whole.total):
        memory = {device: budget}
        plan = pg.plan_placement(nano_f32, memory=memory, **settings)
        found, placement = evaluated(nano_f32, n_gpu_layers="auto", memory=memory, **settings)
        assert placement == plan
        assert placement.devices[0].weights <= budget
        assert relative(found, wanted) <= BOUND


def test_a_longer_context_leaves_room_for_fewer_layers(device: str, nano_f32: Path) -> None:
    settings: dict[str, Any] = {"devices": [device], "memory": {device: "24MiB"}}
    layers = [
        pg.plan_placement(nano_f32, session=pg.SessionSettings(**session), **settings).n_gpu_layers
        for session in (
            {"n_ctx": 512},
            {"n_ctx": 4096},
            {"n_ctx": 4096, "offload_kv": False},
        )
    ]
    assert layers[1] < layers[0] and layers[1] < layers[2]


def test_a_session_that_loads_its_model_plans_for_itself(
    device: str, nano_f32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []
    found = phiggml.model.settled

    def watched(file: Any, asked: Any, session: Any) -> Any:
        planned.append(session.n_ctx)
        return found(file, asked, session)

    monkeypatch.setattr(phiggml.model, "settled", watched)
    pg.Session(nano_f32, n_ctx=777).close()
    assert planned == [777]


def test_a_tied_output_has_a_copy_on_the_device(device: str, tmp_path: Path) -> None:
    model = small_model("llama")
    model.tensors = {key: values.astype(np.float32) for key, values in model.tensors.items()}
    del model.tensors["output.weight"]
    path = model.write(tmp_path / "tied.gguf")
    found, placement = evaluated(path, devices=[device])
    assert placement["token_embd.weight"] == "CPU"
    assert placement["output.weight"] == device
    assert relative(found, evaluated(path, devices=[])[0]) <= BOUND


# what is refused ---------------------------------------------------------------------------------

REFUSED = """
import json, os, sys
import numpy as np
import phiggml as pg

path, device = sys.argv[1:]


def ended(**settings):
    session = settings.pop("session", {})
    try:
        with pg.Model(path, **{"devices": [device], "n_gpu_layers": "all", **settings}) as model:
            with pg.Session(model, **{"n_ctx": 128, **session}) as context:
                context.eval(np.arange(3, 40))
    except pg.PhiggmlError as fault:
        return f"{type(fault).__name__} {fault}"
    return "it runs"


def planned(**settings):
    try:
        return str(pg.plan_placement(path, devices=[device], **settings).n_gpu_layers)
    except pg.PhiggmlError as fault:
        return f"{type(fault).__name__} {fault}"


# A row of a layer's K cache has 512 bytes: in one piece it is more than the device takes.
wide = {"n_ctx": int(os.environ.get("WIDE", 1 << 21))}
long = pg.SessionSettings(**wide)
print(json.dumps({
    "unused": ended(devices=[], n_gpu_layers=0, tensor_overrides=[("ffn", device)]),
    "rows": ended(split_mode="row"),
    "piece": ended(session=wide),
    "planned piece": planned(n_gpu_layers="all", session=long),
    "fitted piece": planned(memory={device: "1TB"}, session=long),
    "room": ended(tensor_overrides=[("output.weight", device)]),
    "huge shares": ended(tensor_split=[1e308]),
    "twice": ended(devices=[device, device]),
}))
"""


@pytest.mark.skipif(not NAME.startswith("Vulkan"), reason="its limits are set for the tests")
def test_what_a_device_cannot_take_is_said(device: str, nano_f32: Path) -> None:
    """Most of these ended the process, or were told as a fault of the file."""

    def said(**environment: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", REFUSED, nano_f32, device],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    found = said()
    assert found["unused"].startswith("DeviceError load: tensor_overrides: there is no device")
    assert found["rows"].startswith('DeviceError load: split_mode "row": ')
    for case in ("piece", "planned piece"):
        assert found[case].startswith(f"DeviceError session: {device} cannot take the K cache")
    assert found["fitted piece"] == "1"  # the output, which has no cache
    assert found["room"] == found["huge shares"] == found["twice"] == "it runs"
    # As if the device had no buffers of more than a megabyte.
    small = said(GGML_VK_FORCE_MAX_BUFFER_SIZE="1000000")
    assert small["room"].startswith("DeviceError load: a device has no room")


ROOMLESS = """
import json, pathlib, resource, sys
import phiggml as pg

path, device = sys.argv[1:]
with pg.Model(path, devices=[device], n_gpu_layers="all") as model:
    pg.Session(model, n_ctx=128, threads=1).close()
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
    said = []
    for settings in ({}, {"offload_kv": False}):
        try:
            pg.Session(model, n_ctx=1 << 18, threads=1, **settings)
        except pg.PhiggmlError as fault:
            said.append(f"{type(fault).__name__} {fault}")
    print(json.dumps(said))
"""


@pytest.mark.skipif(not NAME.startswith("Vulkan"), reason="its memory is this process's")
def test_a_context_that_a_device_has_no_room_for(device: str, nano_f32: Path) -> None:
    """A cache of a gigabyte, on the device and on the CPU, where 600 MiB are left."""
    done = subprocess.run(
        [sys.executable, "-c", ROOMLESS, nano_f32, device],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    on_device, on_cpu = json.loads(done.stdout)
    assert on_device.startswith(f"DeviceError session: {device} has no room for 1074 MB")
    assert "n_gpu_layers" in on_device and "offload_kv=False" in on_device
    assert on_cpu.startswith("SessionError session: ") and "insufficient memory" in on_cpu


def test_the_example_keeps_experts_on_the_cpu(device: str, tmp_path: Path) -> None:
    path = str(small_model("phimoe").write(tmp_path / "moe.gguf"))
    program = example("moe_experts_on_cpu")
    plan = program.plan_experts_on_cpu(path, device, pg.SessionSettings(n_ctx=64))
    with program.load_experts_on_cpu(path, device) as model:
        assert dict(model.placement) == dict(plan)
    for name, holder in plan.items():
        assert holder == ("CPU" if "_exps." in name or name.startswith("token_embd") else device)
