"""Where a model's tensors lie, and what that takes of each device, known before it is loaded."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from phiggml import _core
from phiggml.gguf import GGUFFile
from phiggml.gguf_text import columns
from phiggml.model_check import check_model
from phiggml.placement_search import LAYER, Trial, fitted, tried
from phiggml.placement_settings import Offload, SessionSettings, budget_of
from phiggml.runtime import devices as present_devices

__all__ = ["DevicePlacement", "Placement", "SessionSettings", "plan_placement"]

_MIB = 1 << 20
_INPUTS = ("token_", "position_", "per_layer_token_")


@dataclass(frozen=True)
class DevicePlacement:
    """What a model and a session take of one device, in bytes.

    Attributes:
        name: as `phiggml.devices()` has it.
        weights: the tensors that lie there, padding included.
        kv: the KV cache, or what stands in its place; 0 in the placement of a loaded Model.
        compute: the buffers of the largest graph; 0 likewise.
        budget: what may be taken there: as `memory=` has it, else what is free but for a margin
            of 1 GiB, an eighth of it at most; of the CPU all of the machine's memory.
    """

    name: str
    weights: int
    kv: int
    compute: int
    budget: int

    @property
    def total(self) -> int:
        """Weights, KV cache and compute buffers together."""
        return self.weights + self.kv + self.compute

    @property
    def lacking(self) -> int:
        """Bytes by which it is too much; 0 where it fits."""
        return max(0, self.total - self.budget)


@dataclass(frozen=True, eq=False)
class Placement(Mapping[str, str]):
    """A mapping from tensor names to device names, and what it takes. str() is two tables.

    A model whose embedding serves as its output, too, has "output.weight" where the output is
    computed with a copy of its own.

    Attributes:
        tensors: tensor name -> name of the device that holds it.
        devices: those that layers were to be offloaded to, and at last the CPU.
        n_gpu_layers: how many layers lie on devices, the output counted as one.
        n_layers: how many there are, the output counted as one.
        session: the session that it is planned for; None of a loaded Model.
    """

    tensors: Mapping[str, str]
    devices: tuple[DevicePlacement, ...]
    n_gpu_layers: int
    n_layers: int
    session: SessionSettings | None

    @property
    def fits(self) -> bool:
        """Whether no device lacks memory."""
        return not any(device.lacking for device in self.devices)

    @property
    def faults(self) -> tuple[str, ...]:
        """What does not fit and what to change, a sentence for each device."""
        return tuple(_fault(device) for device in self.devices if device.lacking)

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """What lies where, in few rows: ("blk.0-11", "CPU")."""
        return tuple(_groups(self.tensors))

    def document(self) -> dict[str, Any]:
        """Returns everything as values that json.dumps takes; what `phiggml plan --json` prints.

        Returns:
            Keys that stay: "n_gpu_layers", "n_layers", "fits", "faults", "session" (its settings,
            or None), "devices" (each with "name", "weights", "kv", "compute", "total", "budget" and
            "lacking", in bytes) and "tensors" (name -> device).
        """
        return {
            "n_gpu_layers": self.n_gpu_layers,
            "n_layers": self.n_layers,
            "fits": self.fits,
            "faults": list(self.faults),
            "session": None if self.session is None else asdict(self.session),
            "devices": [
                {**asdict(device), "total": device.total, "lacking": device.lacking}
                for device in self.devices
            ],
            "tensors": dict(self.tensors),
        }

    def __getitem__(self, name: str) -> str:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"<Placement of {len(self)} tensors, {self._layers()}>"

    def __str__(self) -> str:
        heading = ("device", "weights", "KV", "compute", "total", "budget")
        sizes = [
            (d.name, *map(_mib, (d.weights, d.kv, d.compute, d.total, d.budget)))
            for d in self.devices
        ]
        lines = [
            *columns([heading, *sizes], right=range(1, 6)),
            "",
            *columns([("tensors", "lie on"), *self.groups]),
            "",
            f"{self._layers()}{self._tokens()}; sizes are in MiB.",
            *self.faults,
        ]
        return "\n".join(lines)

    def _layers(self) -> str:
        return f"{self.n_gpu_layers} of {self.n_layers} layers offloaded"

    def _tokens(self) -> str:
        if self.session is None:
            return ""
        n_ctx, n_seq_max = self.session.n_ctx, self.session.n_seq_max
        return f", n_ctx {n_ctx:,}" + (f" for each of {n_seq_max}" if n_seq_max > 1 else "")


def plan_placement(
    path: str | os.PathLike[str],
    *,
    n_gpu_layers: int | Literal["auto", "all"] = "auto",
    devices: Sequence[str] | None = None,
    tensor_split: Sequence[float] | None = None,
    split_mode: Literal["none", "layer", "row"] = "layer",
    tensor_overrides: Sequence[tuple[str, str]] = (),
    memory: Mapping[str, int | str] | None = None,
    session: SessionSettings | None = None,
) -> Placement:
    """Tells which tensor would go where, and what each device needs, without loading weights.

    Args:
        path: the GGUF file, or any part of a split one.
        n_gpu_layers, devices, tensor_split, split_mode, tensor_overrides, memory: as for Model.
        session: the session to come; None means one with Session's defaults.

    Returns:
        Placement. One that does not fit is returned as well: `fits` and `faults` say so.

    Raises:
        OSError, FormatError, UnsupportedError, InputError, DeviceError: as Model.
        InputError: the session's settings are wrong.

    Cost:
        Reads the file's header and its vocabulary, once for each trial: one, or about six where
        "auto" does not find that all fits. The GIL is released.

    Source:
        llama_model_params.no_alloc and llama_get_memory_breakdown of llama.cpp, whose own
        common/fit.cpp asks in the same way.

    Example:
        >>> import phiggml as pg
        >>> plan = pg.plan_placement("phi3-nano.gguf", session=pg.SessionSettings(n_ctx=1024))
        >>> plan["output.weight"], plan.devices[-1].kv, plan.fits
        ('CPU', 4194304, True)
    """
    name = os.fsdecode(path)
    asked = Offload.checked(
        n_gpu_layers=n_gpu_layers,
        devices=devices,
        tensor_split=tensor_split,
        split_mode=split_mode,
        tensor_overrides=tensor_overrides,
        memory=memory,
    )
    with GGUFFile(name) as file:
        check_model(file, purpose="load")
        trial = planned(file, asked, session)
    plan = placement_of(trial.found, asked, trial.asked.n_gpu_layers or 0)
    return replace(plan, session=trial.session)


def planned(file: GGUFFile, asked: Offload, session: SessionSettings | None) -> Trial:
    """Finds settings that put what is asked for where it is asked for."""
    session = SessionSettings() if session is None else session
    return (fitted if asked.n_gpu_layers is None else tried)(file, asked, session)


def placement_of(found: _core.placement.Placement, asked: Offload, n_gpu_layers: int) -> Placement:
    """What was found, beside the budgets of all the devices that were asked for."""
    known = {device.name: device for device in (*asked.devices, *present_devices())}
    taken = {sums.device: sums for sums in found.devices}
    names = [*(device.name for device in asked.devices), *taken]
    rows = []
    for name in dict.fromkeys(names):
        sums = taken.get(name, _core.placement.DeviceBytes())
        budget = budget_of(known[name], asked)
        rows.append(DevicePlacement(name, sums.weights, sums.kv, sums.compute, budget))
    # Of a tensor that several devices have the first counts.
    devices_of = {tensor.name: tensor.device for tensor in reversed(found.tensors)}
    tensors = {name: devices_of[name] for name in sorted(devices_of, key=_order)}
    n_layers = 2 + max((_layer_of(name) for name in tensors), default=-1)
    n_offloaded = min(n_gpu_layers, n_layers) if n_gpu_layers >= 0 else n_layers
    return Placement(MappingProxyType(tensors), tuple(rows), n_offloaded, n_layers, None)


def _layer_of(name: str) -> int:
    match = LAYER.match(name)
    return int(match[1]) if match else -1


def _order(name: str) -> tuple[int, int, str]:
    """What is read first comes first."""
    layer = _layer_of(name)
    part = 1 if layer >= 0 else 0 if name.startswith(_INPUTS) else 2
    return part, layer, name


def _groups(tensors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Rows for what is before the layers, for runs of layers that lie alike, and for the rest."""
    parts: dict[tuple[int, int], dict[str, str]] = {}
    for name, device in tensors.items():
        part, layer, _ = _order(name)
        parts.setdefault((part, layer), {})[name] = device
    layers: list[tuple[int, str]] = []
    rest: dict[int, list[tuple[str, str]]] = {0: [], 2: []}
    for (part, layer), held in parts.items():
        if part == 1:
            layers.append((layer, _shown_layer(held)))
        else:
            rest[part] = [(", ".join(names), device) for device, names in _by_device(held).items()]
    yield from rest[0]
    for text, run in itertools.groupby(layers, key=lambda layer: layer[1]):
        numbers = [number for number, _ in run]
        span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
        yield f"blk.{span}", text
    yield from rest[2]


def _shown_layer(held: Mapping[str, str]) -> str:
    """The device of most of a layer's tensors, and what does not lie there."""
    ((most, _),) = Counter(held.values()).most_common(1)
    others = (
        f"{', '.join(names)} on {device}"
        for device, names in _by_device(held).items()
        if device != most
    )
    return "; ".join([most, *others])


def _by_device(held: Mapping[str, str]) -> dict[str, list[str]]:
    """Device -> what lies there, by its name without layer and ending."""
    found: dict[str, list[str]] = {}
    for name, device in held.items():
        kind = LAYER.sub("", name).rpartition(".")[0]
        names = found.setdefault(device, [])
        if kind not in names:
            names.append(kind)
    return found


def _fault(device: DevicePlacement) -> str:
    remedy = (
        "Choose a smaller n_ctx, or a model of fewer bits per weight."
        if device.name == "CPU"
        else 'Hold fewer layers there ("auto" finds how many), choose a smaller n_ctx, or keep the '
        "KV cache on the CPU."
    )
    return (
        f"{device.name} lacks {_mib(device.lacking)} MiB: it needs {_mib(device.total)} and may "
        f"take {_mib(device.budget)}. {remedy}"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MIB:,.1f}"
