"""What is asked for when a model is loaded or planned: devices, layers, budgets; checked here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from phiggml import _core
from phiggml.errors import DeviceError, InputError
from phiggml.gguf import GGUFFile
from phiggml.number import integer
from phiggml.quant import QuantType
from phiggml.runtime import Device, devices

__all__ = [
    "DEFAULT_CONTEXT",
    "Offload",
    "SessionSettings",
    "budget_of",
    "core_model_settings",
]

DEFAULT_CONTEXT = 4096
"""What n_ctx=None gives at most: a cache for the 131072 tokens of a Phi-3.5-mini takes 51 GB."""

MOST_STATES = 4096
"""Of a tensor override's expression: std::regex recurses per state; thousands take hours."""

MARGIN = 1 << 30
"""Bytes of a device's free memory that "auto" leaves alone, but an eighth of it at most.

No plan can count them: the driver's own context and the compiled kernels (300 to 600 MB with CUDA),
workspaces and staging buffers that backends make when they first need them, and what other programs
take before the model is loaded."""

_PREFIXES = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class SessionSettings:
    """What a plan must know of the session to come: Session's arguments of the same names.

    Attributes:
        n_ctx: tokens that a sequence may have; None means the model's own number, at most 4096.
        n_batch: tokens that are evaluated at once.
        n_seq_max: sequences in the context.
        type_k, type_v: quant types of the KV cache.
        flash_attn: True, False, or "auto".
        offload_kv: keep a layer's part of the KV cache on the layer's device, not on the CPU.
        swa_full: keep all tokens in layers with a sliding window, not only those in the window.

    Example:
        >>> import phiggml as pg
        >>> long = pg.SessionSettings(n_ctx=1024, type_k="Q8_0", type_v="Q8_0")
        >>> short = pg.SessionSettings(n_ctx=512)
        >>> kv = [pg.plan_placement("phi3-nano.gguf", session=s).devices[-1].kv
        ...       for s in (long, short)]
        >>> kv[0] / kv[1]
        1.0625
    """

    n_ctx: int | None = None
    n_batch: int = 512
    n_seq_max: int = 1
    type_k: str = "F16"
    type_v: str = "F16"
    flash_attn: bool | Literal["auto"] = "auto"
    offload_kv: bool = True
    swa_full: bool = True

    def _core_settings(self, n_ctx_train: int) -> _core.session.SessionSettings:
        settings = _core.session.SessionSettings()
        settings.n_ctx = max(1, min(n_ctx_train, DEFAULT_CONTEXT))
        if self.n_ctx is not None:
            settings.n_ctx = _positive("n_ctx", self.n_ctx)
        settings.n_batch = _positive("n_batch", self.n_batch)
        settings.n_seq_max = _positive("n_seq_max", self.n_seq_max)
        settings.type_k = QuantType(self.type_k).id
        settings.type_v = QuantType(self.type_v).id
        settings.flash_attn = _flash(self.flash_attn)
        settings.offload_kv = bool(self.offload_kv)
        settings.swa_full = bool(self.swa_full)
        return settings


@dataclass(frozen=True)
class Offload:
    """What is to lie where, as it was asked for.

    Attributes:
        n_gpu_layers: how many layers, the output among them; -1 for all, None for "auto".
        devices: those to offload to, never the CPU.
        tensor_split: a share for each of them; nothing where there is one, or none has memory.
        split_mode: "none", "layer" or "row".
        tensor_overrides: pairs (regular expression over tensor names, device name).
        memory: device name -> bytes that may be used there, in place of what is free.
    """

    n_gpu_layers: int | None
    devices: tuple[Device, ...]
    tensor_split: tuple[float, ...]
    split_mode: str
    tensor_overrides: tuple[tuple[str, str], ...]
    memory: Mapping[str, int]

    @classmethod
    def checked(
        cls,
        *,
        n_gpu_layers: object,
        devices: Sequence[str] | None,
        tensor_split: Sequence[float] | None,
        split_mode: object,
        tensor_overrides: Sequence[tuple[str, str]],
        memory: Mapping[str, int | str] | None,
    ) -> Offload:
        """From the arguments of Model or plan_placement.

        Raises:
            InputError: one of them is wrong.
            DeviceError: a device asked for is absent.
        """
        chosen = _choose_devices(devices)
        mode = _checked_split_mode(split_mode)
        asked = cls(
            _checked_layers(n_gpu_layers, chosen),
            chosen,
            _checked_split(tensor_split, chosen),
            mode,
            _checked_overrides(tensor_overrides, chosen[:1] if mode == "none" else chosen),
            _checked_memory(memory, chosen),
        )
        if tensor_split is None and len(chosen) > 1:
            budgets = [float(budget_of(device, asked)) for device in chosen]
            asked = replace(asked, tensor_split=_checked_split(budgets, chosen))
        return asked


def budget_of(device: Device, asked: Offload) -> int:
    """Bytes that a model may take on a device: as given, or what is free but for the margin.

    Of the CPU that is all of its memory: nobody knows how much of it the system would free.
    """
    if device.name in asked.memory:
        return asked.memory[device.name]
    if device.kind == "cpu":
        return device.memory_total
    return device.memory_free - min(MARGIN, device.memory_free // 8)


def core_model_settings(file: GGUFFile, path: str, asked: Offload) -> _core.model.ModelSettings:
    """The settings that ask for just this; nothing is offloaded where that is left to a plan."""
    settings = _core.model.ModelSettings()
    settings.path = os.fsencode(path)
    settings.files = [part.core for part in file._open_parts()]
    settings.n_gpu_layers = asked.n_gpu_layers or 0
    settings.devices = [device.name for device in asked.devices]
    settings.tensor_split = list(asked.tensor_split)
    settings.split_mode = asked.split_mode
    settings.tensor_overrides = list(asked.tensor_overrides)
    return settings


def _parse_memory(value: object, name: str) -> int:
    """Bytes: a whole number, or a text such as "8GiB" or "500 MB".

    Raises:
        InputError: it is neither, or more than 2^62.
    """
    n_bytes = value
    if isinstance(value, str):
        pattern = r"(\d{1,20}(?:\.\d{1,9})?) ?([KMGT]?)(i?)B?"
        found = re.fullmatch(pattern, value.strip(), re.ASCII | re.IGNORECASE)
        if found is not None:
            unit = 1024 if found[3] else 1000
            n_bytes = int(Decimal(found[1]) * unit ** _PREFIXES[found[2].upper()])
    checked = integer(n_bytes, 0, 1 << 62)
    if checked is None:
        raise InputError(
            f'load: memory: {name} has {value!r}: it must be bytes, or a text such as "8GiB".'
        )
    return checked


def _positive(name: str, value: Any) -> int:
    number = integer(value, 1, 1 << 30)
    if number is None:
        raise InputError(f"session: {name} is {value!r}: it must be an integer from 1 to 2^30.")
    return number


def _flash(value: Any) -> bool | None:
    if value == "auto":
        return None
    if not isinstance(value, bool):
        raise InputError(f'session: flash_attn is {value!r}: it must be True, False or "auto".')
    return value


def _choose_devices(names: Sequence[str] | None) -> tuple[Device, ...]:
    present = devices()
    if names is None:
        return tuple(device for device in present if device.kind == "gpu")
    if isinstance(names, str):
        raise InputError(f"load: devices is {names!r}: it must be a list of names.")
    by_name = {device.name: device for device in present}
    for name in names:
        if name not in by_name:
            raise DeviceError(
                f"load: there is no device {name!r}. Present: {', '.join(by_name)}. "
                "Install its backend, or leave it out."
            )
    # The CPU's own device computes whatever the others do not; it is not offloaded to.
    return tuple(by_name[name] for name in names if name != "CPU")


def _checked_layers(n_gpu_layers: object, chosen: Sequence[Device]) -> int | None:
    if n_gpu_layers == "auto":
        return None
    number = -1 if n_gpu_layers == "all" else integer(n_gpu_layers, 0)
    if number is None:
        raise InputError(
            f'load: n_gpu_layers is {n_gpu_layers!r}: it must be a number >= 0, "all" or "auto".'
        )
    if number != 0 and not chosen:
        raise DeviceError(
            "load: n_gpu_layers asks for a GPU and there is none. Install a GPU's "
            'backend, or pass n_gpu_layers="auto".'
        )
    return min(number, 1 << 30)


def _checked_split_mode(mode: object) -> str:
    if not isinstance(mode, str) or mode not in ("none", "layer", "row"):
        raise InputError(f'load: split_mode is {mode!r}: it must be "none", "layer" or "row".')
    return mode


def _checked_split(split: Sequence[float] | None, chosen: Sequence[Device]) -> tuple[float, ...]:
    if split is None:
        return ()
    try:
        shares = [float(share) for share in split]
    except (TypeError, ValueError):
        raise InputError(
            f"load: tensor_split is {split!r}: it must be a list of numbers."
        ) from None
    if len(shares) != len(chosen) or not all(0 <= share < float("inf") for share in shares):
        raise InputError(
            f"load: tensor_split is {shares}: it must have one finite share >= 0 for each of the "
            f"{len(chosen)} devices."
        )
    most = max(shares, default=0.0)  # upstream adds them up in float32
    return tuple(share / most for share in shares) if most > 0 else ()


def _checked_memory(
    memory: Mapping[str, int | str] | None, chosen: Sequence[Device]
) -> dict[str, int]:
    if memory is None:
        return {}
    if not isinstance(memory, Mapping):
        raise InputError(f"load: memory is {memory!r}: it must map device names to bytes.")
    names = [*(device.name for device in chosen), "CPU"]
    for name in memory:
        if name not in names:
            raise DeviceError(
                f"load: memory names {name!r}, which is none of the devices to be used: "
                f"{', '.join(names)}."
            )
    return {name: _parse_memory(value, name) for name, value in memory.items()}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _checked_overrides(
    overrides: Sequence[tuple[str, str]], chosen: Sequence[Device]
) -> tuple[tuple[str, str], ...]:
    # A graph computes on these and on no other: upstream asserts that it can reach each weight.
    reached = [*(d.name for d in chosen), *(d.name for d in devices() if d.kind != "gpu")]
    checked = []
    for override in overrides:
        if isinstance(override, str) or len(override) != 2 or not all(map(_is_text, override)):
            raise InputError(
                f"load: tensor_overrides: {override!r} is no pair of a regular expression and a "
                "device's name."
            )
        pattern, device = override
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as failure:
            raise InputError(
                f"load: tensor_overrides: {pattern[:80]!r} is no regular expression: {failure}."
            ) from None
        if len(pattern) * math.prod(map(int, re.findall(r"(?<=[{,])[1-9]\d*(?=[,}])", pattern))) > (
            MOST_STATES
        ):
            raise InputError(
                f"load: tensor_overrides: {pattern[:80]!r} is too large: its length times its "
                f"repetition counts must stay below {MOST_STATES}. Write several overrides."
            )
        if device not in reached:
            raise DeviceError(
                f"load: tensor_overrides: there is no device {device!r} among those to be used: "
                f"{', '.join(reached)}. Name it in devices, too, or choose another."
            )
        checked.append((pattern, device))
    return tuple(checked)
