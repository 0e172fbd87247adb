"""What this process has: devices, threads, and the log of the compiled half."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from phiggml import _core
from phiggml.errors import InputError

__all__ = ["Device", "devices"]

logger = logging.getLogger("phiggml")
logger.addHandler(logging.NullHandler())

MOST_THREADS = 512
"""ggml's own ceiling (GGML_MAX_N_THREADS)."""


@dataclass(frozen=True)
class Device:
    """Something that computes.

    Attributes:
        name: what `Model(devices=[...])` takes, such as "CPU", "CUDA0" or "Vulkan0".
        description: the driver's name for it.
        backend: the backend module that drives it.
        kind: "cpu", "gpu" or "accel".
        memory_total: bytes.
        memory_free: bytes free when asked; of the CPU, whose free memory ggml does not know, all.
    """

    name: str
    description: str
    backend: str
    kind: str
    memory_total: int
    memory_free: int


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int | None, operation: str) -> int:
    """Resolves `threads=None` to the cores available to this process, and checks a number.

    Raises:
        InputError: `threads` is no integer between 1 and 512.
    """
    if threads is None:
        return min(available_cores(), MOST_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise InputError(f"{operation}: threads is {threads!r}: it must be an integer or None.")
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"{operation}: threads is {threads}: it must be between 1 and {MOST_THREADS}, "
            "or None for all cores."
        )
    return threads


def library_folder() -> Path:
    """The folder of the compiled libraries and backend modules."""
    return Path(str(_core.__file__)).parent / "lib"


def load_backends() -> None:
    """Loads the CPU module and every backend module that this installation carries, once.

    Raises:
        DeviceError: no CPU module runs here, or PHIGGML_CPU_VARIANT names an absent one.
    """
    try:
        _core.runtime.load_backends(
            str(library_folder()), os.environ.get("PHIGGML_CPU_VARIANT", "")
        )
    finally:
        forward_log()


def forward_log() -> None:
    """Hands what the compiled half has logged since the last call to logging's "phiggml"."""
    for level, text in _core.runtime.take_log():
        if logger.isEnabledFor(level) and text.strip():
            logger.log(level, "%s", text.rstrip())


def devices() -> list[Device]:
    """Lists what can compute here; the CPU is always among them.

    Returns:
        One Device for each, in the order in which backends were loaded.

    Raises:
        DeviceError: no CPU module runs on this machine.

    Cost:
        The first call loads the backend modules.

    Source:
        ggml's device registry (ggml_backend_dev_get).

    Example:
        >>> import phiggml as pg
        >>> "cpu" in [device.kind for device in pg.devices()]
        True
    """
    load_backends()
    return [
        Device(d.name, d.description, d.backend, d.kind, d.memory_total, d.memory_free)
        for d in _core.runtime.list_devices()
    ]
