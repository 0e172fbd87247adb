"""Placements on the CPU: what is counted, how the search ends, and what is refused.

tests/test_offload_placement.py has the same on a device.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_bytes
import hostile_models
import phiggml as pg
from phiggml import placement_search
from phiggml.placement_settings import MARGIN, Offload, budget_of
from phiggml.runtime import Device
from small_models import small_model

# phi3-nano's config.json: 4 layers, 4 heads of 64 for keys and as many for values.
N_LAYER, N_KV = 4, 256
F16_BYTES, Q8_0_BYTES = 2, 34 / 32


# what is counted ---------------------------------------------------------------------------------


def test_the_cpu_has_it_all(nano_f16: Path) -> None:
    plan = pg.plan_placement(nano_f16, devices=[])
    with pg.GGUFFile(nano_f16) as file:
        sizes = {tensor.name: tensor.nbytes for tensor in file.tensors.values()}
    assert dict(plan) == dict.fromkeys(sizes, "CPU")
    (cpu,) = plan.devices
    assert 0 <= cpu.weights - sum(sizes.values()) < 64 * len(sizes)  # padding
    assert (cpu.name, cpu.lacking, plan.fits, plan.faults) == ("CPU", 0, True, ())
    assert cpu.total == cpu.weights + cpu.kv + cpu.compute
    assert (plan.n_gpu_layers, plan.n_layers) == (0, N_LAYER + 1)


@pytest.mark.parametrize(
    ("settings", "n_cells", "bytes_each"),
    [
        ({}, 4096, F16_BYTES),
        ({"n_ctx": 512}, 512, F16_BYTES),
        ({"n_ctx": 300}, 512, F16_BYTES),  # upstream's caches have multiples of 256 cells
        ({"n_ctx": 512, "n_seq_max": 3}, 3 * 512, F16_BYTES),
        ({"n_ctx": 512, "type_k": "Q8_0", "type_v": "Q8_0"}, 512, Q8_0_BYTES),
        ({"n_ctx": 512, "offload_kv": False}, 512, F16_BYTES),
    ],
)
def test_bytes_of_the_cache(
    nano_f16: Path, settings: dict[str, Any], n_cells: int, bytes_each: float
) -> None:
    plan = pg.plan_placement(nano_f16, devices=[], session=pg.SessionSettings(**settings))
    assert plan.devices[0].kv == n_cells * N_LAYER * 2 * N_KV * bytes_each
    assert plan.session is not None
    assert plan.session.n_ctx == settings.get("n_ctx", 4096)


def logged_mib(messages: list[str], what: str) -> float:
    (size,) = [m[1] for line in messages if (m := re.search(rf"{what} = +([\d.]+) MiB", line))]
    return float(size)


@pytest.mark.parametrize("n_batch", [64, 512])
def test_buffers_are_those_that_a_session_takes(
    nano_f16: Path, n_batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp logs what it has taken, of a model that is loaded whole."""
    session = pg.SessionSettings(n_ctx=1024, n_batch=n_batch)
    (planned,) = pg.plan_placement(nano_f16, devices=[], session=session).devices
    with pg.Model(nano_f16, devices=[]) as model:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="phiggml"):
            pg.Session(model, n_ctx=1024, n_batch=n_batch).close()
        assert model.placement.devices[0].weights == planned.weights
    taken = logged_mib(caplog.messages, "CPU compute buffer size")
    assert planned.compute / 2**20 == pytest.approx(taken, abs=0.01)
    assert planned.kv / 2**20 == pytest.approx(logged_mib(caplog.messages, "CPU KV buffer size"))


def test_a_loaded_model_has_weights_only(nano_model: pg.Model) -> None:
    placement = nano_model.placement
    assert all(device.kv == device.compute == 0 for device in placement.devices)
    assert placement.session is None
    assert isinstance(placement, pg.Placement)
    assert "sizes are in MiB" in str(placement)


def test_it_is_a_mapping(nano_f16: Path) -> None:
    plan = pg.plan_placement(nano_f16, devices=[])
    assert plan == dict(plan) == pg.plan_placement(nano_f16, devices=[])
    assert next(iter(plan)) == "token_embd.weight" and len(plan) == len(list(plan))
    assert plan.get("nothing") is None
    with pytest.raises(AttributeError):
        plan.devices = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.tensors["token_embd.weight"] = "GPU"  # type: ignore[index]
    assert json.loads(json.dumps(plan.document()))["tensors"] == dict(plan)


def test_a_tied_output_may_have_a_copy(tmp_path: Path) -> None:
    """Where the output is computed with weights of another layout, it is said to lie there."""
    model = small_model("llama")
    del model.tensors["output.weight"]
    plan = pg.plan_placement(model.write(tmp_path / "tied.gguf"), devices=[])
    assert set(plan) - {"output.weight"} == set(model.tensors)


def test_groups_of_layers() -> None:
    tensors = {
        "token_embd.weight": "CPU",
        **{f"blk.{i}.ffn_down_exps.weight": "CPU" if i < 7 else "GPU" for i in range(12)},
        **{f"blk.{i}.{part}": "GPU" for i in range(3, 12) for part in ("attn.weight", "attn.bias")},
        "output.weight": "GPU",
        "output_norm.weight": "GPU",
    }
    plan = pg.Placement(tensors, (), 10, 13, None)
    assert plan.groups == (
        ("token_embd", "CPU"),
        ("blk.0-2", "CPU"),
        ("blk.3-6", "GPU; ffn_down_exps on CPU"),
        ("blk.7-11", "GPU"),
        ("output, output_norm", "GPU"),
    )


def test_what_does_not_fit_is_said(nano_f16: Path) -> None:
    plan = pg.plan_placement(nano_f16, devices=[], memory={"CPU": "1MiB"})
    assert not plan.fits
    (fault,) = plan.faults
    (cpu,) = plan.devices
    assert fault.startswith(f"CPU lacks {(cpu.total - 2**20) / 2**20:,.1f} MiB: ")
    assert str(plan).endswith(fault)
    assert plan.document()["devices"][0]["lacking"] == cpu.total - 2**20


# settings ----------------------------------------------------------------------------------------


def test_defaults_are_those_of_a_session() -> None:
    parameters = inspect.signature(pg.Session).parameters
    for field in fields(pg.SessionSettings):
        assert parameters[field.name].default == field.default, field.name


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        (5, 5),
        ("5", 5),
        ("8GiB", 8 * 2**30),
        ("8 GB", 8 * 10**9),
        ("1.5g", 15 * 10**8),
        ("512kib", 512 * 1024),
        (" 2T ", 2 * 10**12),
    ],
)
def test_sizes_of_memory(nano_f16: Path, text: int | str, n_bytes: int) -> None:
    plan = pg.plan_placement(nano_f16, devices=[], memory={"CPU": text})
    assert plan.devices[0].budget == n_bytes


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"memory": {"CPU": "lots"}}, pg.InputError, "'lots'"),
        ({"memory": {"CPU": -1}}, pg.InputError, "-1"),
        ({"memory": {"CPU": True}}, pg.InputError, "True"),
        ({"memory": {"CPU": 2.5}}, pg.InputError, "2.5"),
        ({"memory": {"CPU": "9" * 20 + "T"}}, pg.InputError, "999"),
        ({"memory": "8GiB"}, pg.InputError, "must map"),
        ({"memory": {"CUDA7": 1}}, pg.DeviceError, "CUDA7"),
        ({"devices": ["CUDA7"]}, pg.DeviceError, "CUDA7"),
        ({"devices": [], "n_gpu_layers": 1}, pg.DeviceError, "there is none"),
        ({"n_gpu_layers": "most"}, pg.InputError, "most"),
        ({"tensor_overrides": [("ffn", "CUDA7")]}, pg.DeviceError, "CUDA7"),
        ({"tensor_overrides": [("(", "CPU")]}, pg.InputError, "regular expression"),
        ({"session": pg.SessionSettings(n_ctx=0)}, pg.InputError, "n_ctx is 0"),
        ({"session": pg.SessionSettings(n_batch=0)}, pg.InputError, "n_batch is 0"),
        ({"session": pg.SessionSettings(n_ctx=2**30)}, pg.InputError, "2^24"),
        ({"session": pg.SessionSettings(n_ctx=2**29, n_seq_max=2**29)}, pg.InputError, "2^24"),
        ({"session": pg.SessionSettings(n_seq_max=10**6)}, pg.InputError, "2^24"),
        ({"session": pg.SessionSettings(n_seq_max=1000)}, pg.InputError, "n_seq_max"),
        ({"session": pg.SessionSettings(type_k="Q4_K")}, pg.InputError, "type_k"),
        ({"session": pg.SessionSettings(type_v="Q8_0", flash_attn=False)}, pg.InputError, "flash"),
    ],
)
def test_what_is_refused(
    nano_f16: Path, settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        pg.plan_placement(nano_f16, **settings)
    if "session" not in settings:
        with pytest.raises(error, match=re.escape(says)):
            pg.Model(nano_f16, **settings)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pg.plan_placement(tmp_path / "none.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(pg.FormatError):
        pg.plan_placement(tmp_path / "x.gguf")


def test_a_model_without_sessions_has_weights(tmp_path: Path) -> None:
    """One whose attention looks ahead: it loads, and no session runs on it."""
    model = small_model("llama")
    model.metadata["llama.attention.causal"] = pg.GGUFValue(False, "BOOL")
    plan = pg.plan_placement(model.write(tmp_path / "x.gguf"), devices=[])
    assert plan.devices[0].weights > 0
    assert (plan.devices[0].kv, plan.devices[0].compute) == (0, 0)


HOSTILE = """
import sys
from pathlib import Path
import phiggml as pg
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    try:
        pg.plan_placement(path, devices=[])
    except (pg.FormatError, pg.UnsupportedError) as fault:
        print(path.name, type(fault).__name__)
    else:
        print(path.name, "planned")
"""


def test_hostile_metadata_never_ends_the_process(tmp_path: Path) -> None:
    cases = hostile_models.cases(gguf_bytes.Layout())
    for number, case in enumerate(cases.values()):
        case.write(tmp_path / f"{number}.gguf")
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(cases)


def test_no_gpu_is_said_once(nano_f16: Path, caplog: pytest.LogCaptureFixture) -> None:
    placement_search._say_that_there_is_no_gpu.cache_clear()
    with caplog.at_level(logging.INFO, logger="phiggml"):
        for _ in range(2):
            pg.plan_placement(nano_f16, devices=[])
            pg.Model(nano_f16, devices=[]).close()
    said = [r for r in caplog.records if "there is no GPU" in r.getMessage()]
    assert [record.levelname for record in said] == ["INFO"]
    caplog.clear()
    placement_search._say_that_there_is_no_gpu.cache_clear()
    pg.Model(nano_f16, devices=[], n_gpu_layers=0).close()
    assert not caplog.records or "no GPU" not in caplog.text


# the search, on devices that are made up ---------------------------------------------------------


@dataclass
class Sums:
    device: str
    weights: int
    kv: int = 0
    compute: int = 0


@dataclass
class Found:
    devices: list[Sums]


def made_up(name: str, free: int) -> Device:
    return Device(name, name, "made up", "gpu", free, free)


def asked_for(budgets: dict[str, int], **settings: Any) -> Offload:
    devices = tuple(made_up(name, 1 << 40) for name in budgets)
    shares = tuple(budget / max(*budgets.values(), 1) for budget in budgets.values())
    return Offload(None, devices, shares, "layer", (), budgets, **settings)


Tried = Callable[[Any, Offload, pg.SessionSettings], placement_search.Trial]


def measuring(n_layer: int, layer: int, experts: int, output: int, compute: int) -> Tried:
    """Sizes by a rule of three of upstream's: layers from the end, to devices by their shares."""

    def tried(file: Any, asked: Offload, session: pg.SessionSettings) -> placement_search.Trial:
        n = min(asked.n_gpu_layers or 0, n_layer + 1)
        sums = [Sums(device.name, 0, 0, compute) for device in asked.devices]
        shares = np.cumsum(asked.tensor_split or [1])
        bounds = shares / max(shares[-1], 1)
        for i in range(n):
            number = n_layer + 1 - n + i
            kept = any(
                re.search(pattern, f"blk.{number}.ffn_up_exps.weight")
                for pattern, _ in asked.tensor_overrides
            )
            at = sums[int(np.argmax(bounds > i / n))]
            at.weights += output if number == n_layer else layer + (0 if kept else experts)
        return placement_search.Trial(asked, session, Found(sums))  # type: ignore[arg-type]

    return tried


class File:
    """As much of a file as the search looks at."""

    def __init__(self, n_layer: int, *, experts: bool) -> None:
        parts = ("attn_q", "ffn_up_exps") if experts else ("attn_q", "ffn_up")
        self.tensors = {f"blk.{i}.{part}.weight" for i in range(n_layer) for part in parts}


@pytest.mark.parametrize("experts", [0, 70])
@pytest.mark.parametrize("budgets", [(0,), (49,), (50,), (333,), (1000,), (10**6,), (400, 200)])
def test_the_search_finds_the_most_that_fits(
    budgets: tuple[int, ...], experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against trying every step there is, from the last one back."""
    n_layer = 9
    tried = measuring(n_layer, 30, experts, 45, 50)
    n_tried = itertools.count()

    def counted(*arguments: Any) -> placement_search.Trial:
        next(n_tried)
        return tried(*arguments)

    monkeypatch.setattr(placement_search, "tried", counted)
    file: Any = File(n_layer, experts=bool(experts))
    asked = asked_for({f"GPU{i}": budget for i, budget in enumerate(budgets)})
    best = placement_search.fitted(file, asked, pg.SessionSettings())
    assert next(n_tried) <= 2 + 6

    def fits(step: Offload) -> bool:
        sums = tried(file, step, pg.SessionSettings()).found.devices
        return all(s.weights + s.compute <= asked.memory[s.device] for s in sums)

    steps = [step for step in placement_search._steps(file, asked) if fits(step)]
    assert len(steps) == 0 or best.asked == steps[-1]
    assert (best.asked.devices == ()) == (not steps)


def test_experts_are_given_up_before_layers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_search, "tried", measuring(4, 10, 100, 20, 5))
    file: Any = File(4, experts=True)
    # All but the experts: 5 + 20 + 4 * 10; and those of two layers.
    best = placement_search.fitted(file, asked_for({"GPU0": 65 + 200}), pg.SessionSettings())
    assert best.asked.n_gpu_layers == 5
    ((pattern, device),) = best.asked.tensor_overrides
    kept = [i for i in range(4) if re.search(pattern, f"blk.{i}.ffn_up_exps.weight")]
    assert (kept, device) == ([0, 1], "CPU")
    assert not re.search(pattern, "blk.10.ffn_up_exps.weight")
    assert not re.search(pattern, "blk.0.ffn_up_shexp.weight")


def test_a_margin_is_left() -> None:
    asked = asked_for({})
    assert budget_of(made_up("GPU0", 80 << 30), asked) == (80 << 30) - MARGIN
    assert budget_of(made_up("GPU0", 4 << 30), asked) == (4 << 30) - (512 << 20)
    assert budget_of(made_up("GPU0", 0), asked) == 0
    assert budget_of(made_up("GPU0", 80 << 30), asked_for({"GPU0": 7})) == 7
