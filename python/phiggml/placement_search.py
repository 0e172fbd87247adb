"""The search behind n_gpu_layers="auto": the most that fits the budgets of the devices."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

from phiggml import _core
from phiggml.errors import DeviceError
from phiggml.gguf import GGUFFile
from phiggml.placement_settings import (
    DEFAULT_CONTEXT,
    Offload,
    SessionSettings,
    budget_of,
    core_model_settings,
)
from phiggml.runtime import devices, forward_log, logger

__all__ = ["LAYER", "Trial", "fitted", "settled", "tried"]

LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_\w+_exps\.")


@dataclass(frozen=True)
class Trial:
    """Settings, and what a model loaded by them takes.

    Attributes:
        asked: what is to lie where.
        session: the session to come, with its n_ctx.
        found: what that gives.
    """

    asked: Offload
    session: SessionSettings
    found: _core.placement.Placement


def tried(file: GGUFFile, asked: Offload, session: SessionSettings) -> Trial:
    """Finds out what these settings give."""
    key = f"{file.metadata.get('general.architecture')}.context_length"
    settings = session._core_settings(int(file.metadata.get(key, DEFAULT_CONTEXT)))
    settings.threads = 1
    try:
        found = _core.placement.plan(core_model_settings(file, str(file.path), asked), settings)
    finally:
        forward_log()
    return Trial(asked, replace(session, n_ctx=settings.n_ctx), found)


def fitted(file: GGUFFile, asked: Offload, session: SessionSettings) -> Trial:
    """The settings that bring most of the model onto the devices within their budgets.

    Layers come from the last on, the output first. A model with experts has those come last: all
    the rest of its layers does more on a device than some layers whole. Where not even the buffers
    of devices that hold no layer fit, none is used.
    """
    if not asked.devices:
        _say_that_there_is_no_gpu()
        return tried(file, replace(asked, n_gpu_layers=0), session)
    steps = _steps(file, asked)
    best = _tried_within(file, steps[-1], session)
    if best is not None:
        return best
    best = tried(file, _without_devices(asked), session)
    low, high = 0, len(steps) - 1  # whatever is below `low` fits, what is from `high` on does not
    while low < high:
        middle = (low + high) // 2
        trial = _tried_within(file, steps[middle], session)
        if trial is None:
            high = middle
        else:
            best, low = trial, middle + 1
    return best


def settled(file: GGUFFile, asked: Offload, session: SessionSettings) -> Offload:
    """What a load is to follow; nothing is tried where there is no device to choose for."""
    if asked.n_gpu_layers is not None:
        return asked
    if not asked.devices:
        _say_that_there_is_no_gpu()
        return replace(asked, n_gpu_layers=0)
    return fitted(file, asked, session).asked


def _steps(file: GGUFFile, asked: Offload) -> list[Offload]:
    """What may be tried, each step bringing more onto the devices than the one before."""
    found = [int(match[1]) for name in file.tensors if (match := LAYER.match(name))]
    n_layer = max(found, default=-1) + 1
    layers = [replace(asked, n_gpu_layers=n) for n in range(n_layer + 2)]
    if not any(map(_EXPERTS.match, file.tensors)):
        return layers
    return [
        *(_with_experts_on_cpu(step, n_layer) for step in layers),
        *(_with_experts_on_cpu(layers[-1], n) for n in range(n_layer - 1, -1, -1)),
    ]


def _without_devices(asked: Offload) -> Offload:
    overrides = tuple((pattern, "CPU") for pattern, _ in asked.tensor_overrides)
    return replace(asked, n_gpu_layers=0, devices=(), tensor_split=(), tensor_overrides=overrides)


def _with_experts_on_cpu(asked: Offload, n_layer: int) -> Offload:
    """The experts of the first n_layer layers, unless an override of the caller's says other."""
    if n_layer == 0:
        return asked
    numbers = "|".join(map(str, range(n_layer)))
    override = (rf"^blk\.({numbers})\.ffn_\w+_exps\.", "CPU")
    return replace(asked, tensor_overrides=(*asked.tensor_overrides, override))


def _tried_within(file: GGUFFile, asked: Offload, session: SessionSettings) -> Trial | None:
    """Nothing where it does not fit, or a device cannot take a piece of it."""
    try:
        trial = tried(file, asked, session)
    except DeviceError as fault:
        logger.debug("%s", fault)
        return None
    return trial if _fits(trial) else None


def _fits(trial: Trial) -> bool:
    taken = {d.device: d.weights + d.kv + d.compute for d in trial.found.devices}
    budgets = {d.name: budget_of(d, trial.asked) for d in trial.asked.devices}
    if trial.asked.split_mode == "row":
        # What is split by rows is counted for the first device, though all have a part of it.
        return sum(taken[name] for name in budgets) <= sum(budgets.values())
    return all(taken[name] <= budget for name, budget in budgets.items())


@functools.cache
def _say_that_there_is_no_gpu() -> None:
    """Once in a process: it is no fault, and one that is missed must be found."""
    present = ", ".join(device.name for device in devices())
    logger.info("load: n_gpu_layers is auto, and there is no GPU (%s): the CPU has it all", present)
