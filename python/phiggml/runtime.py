"""What this process has: devices, threads, and the log of the compiled half."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phiggml import _core
from phiggml.cores import available_cores, physical_cores
from phiggml.errors import InputError
from phiggml.number import integer
from phiggml.plugin import Plugin, absent_plugins, installed_plugins

__all__ = ["Device", "devices"]

logger = logging.getLogger("phiggml")
logger.addHandler(logging.NullHandler())

# What the system's loader or a driver says -> what that means, and what to do.
_NO_DRIVER = "There is no NVIDIA driver here: install one to use the GPU."
_SENTENCES = {
    "libcuda.so": _NO_DRIVER,
    "libcudart.so.12": "CUDA's runtime is not here: pip install nvidia-cuda-runtime-cu12.",
    "libcudart.so": "CUDA's runtime is not here: pip install nvidia-cuda-runtime.",
    "libcublas.so.12": "cuBLAS is not here: pip install nvidia-cublas-cu12.",
    "libcublas.so": "cuBLAS is not here: pip install nvidia-cublas.",
    "libcublasLt.so.12": "cuBLAS is not whole here: pip install nvidia-cublas-cu12.",
    "libcublasLt.so": "cuBLAS is not whole here: pip install nvidia-cublas.",
    "driver version is insufficient": "The NVIDIA driver is too old for this plugin: update it.",
    "no CUDA-capable device": "The NVIDIA driver finds no GPU here.",
    "libvulkan.so": "There is no Vulkan loader here: install one (Debian: libvulkan1).",
    "libamdhip64.so": "There is no ROCm runtime here: install one to use the GPU.",
    "libsycl.so": "There is no oneAPI runtime here: install one to use the GPU.",
}

_OURS = ("cuda13", "cuda12", "vulkan", "rocm", "sycl", "rpc")
"""Nobody is told to install a package of another name: anyone may have made one."""

_DRIVER = "cuda"
"""cuda-pathfinder's name of it."""

SMALL_MODEL = 32 << 20
"""Bytes of weights up to which threads=None is one thread (docs/decisions.md, 2026-11-22)."""

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


def thread_count(threads: int | None, operation: str, *, physical: bool = False) -> int:
    """Resolves `threads=None` to the cores available to this process, and checks a number.

    Args:
        threads: a number, or None.
        operation: who asks, for the sentence of an error.
        physical: of two hyperthreads count one.

    Raises:
        InputError: `threads` is no integer between 1 and 512.
    """
    if threads is None:
        return min(physical_cores() if physical else available_cores(), MOST_THREADS)
    number = integer(threads, 1, MOST_THREADS)
    if number is None:
        raise InputError(
            f"{operation}: threads is {threads!r}: it must be an integer from 1 to "
            f"{MOST_THREADS}, or None for all cores."
        )
    return number


def session_threads(threads: int | None, n_bytes: int) -> int:
    """Resolves a session's `threads` for a model of so many bytes, and checks a number.

    Raises:
        InputError: as thread_count.
    """
    if threads is None and n_bytes < SMALL_MODEL:
        return 1
    return thread_count(threads, "session", physical=True)


def library_folder() -> Path:
    """The folder of the compiled libraries and backend modules."""
    return Path(str(_core.__file__)).parent / "lib"


@dataclass(frozen=True)
class Backend:
    """A backend that is installed as a plugin, and what became of it.

    Attributes:
        name: "cuda13", "vulkan" and so on.
        distribution: name and version of what brought it.
        loaded: whether its module is in the process.
        reason: why not, in sentences; or that it found no device.
    """

    name: str
    distribution: str
    loaded: bool
    reason: str = ""


class _Loaded:
    """What load_backends did; the lock keeps a second thread until all of it is done."""

    def __init__(self) -> None:
        # The thread that loads may fork: whatever finds a driver may start a process.
        self.lock = threading.RLock()
        self.backends: list[Backend] | None = None

    def wait(self) -> None:
        """Before a fork: half of what a thread loads, with upstream's locks, helps no child."""
        self.lock.acquire()

    def go_on(self) -> None:
        """After it, in the parent and in the child, whose only thread has the lock."""
        self.lock.release()


_loaded = _Loaded()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_loaded.wait, after_in_parent=_loaded.go_on, after_in_child=_loaded.go_on
    )


def load_backends() -> list[Backend]:
    """Loads the CPU module, the other modules of this installation and its plugins, once.

    Returns:
        What became of each plugin; one that cannot be used leaves the CPU, and says why.

    Raises:
        DeviceError: no CPU module runs here, or PHIGGML_CPU_VARIANT names an absent one.
    """
    if _loaded.backends is not None:
        return _loaded.backends
    try:
        with _loaded.lock:
            if _loaded.backends is not None:
                return _loaded.backends
            variant = os.environ.get("PHIGGML_CPU_VARIANT", "")
            name = variant.encode("utf-8", "backslashreplace").decode()
            _core.runtime.load_backends(str(library_folder()), name)
            backends = [*map(_load_plugin, installed_plugins()), *map(_absent, absent_plugins())]
            _loaded.backends = backends
    finally:
        forward_log()  # without the lock: a handler may ask for devices
    for backend in backends:
        if backend.reason:
            logger.warning("backend %s: %s", backend.name, backend.reason)
    return backends


def _load_plugin(plugin: Plugin) -> Backend:
    if plugin.library is None:
        return Backend(plugin.name, plugin.distribution, False, plugin.fault)
    missing = _preload(plugin.needs)
    is_loaded, n_devices, complaint = _core.runtime.load_backend(str(plugin.library))
    reason = ""
    if not is_loaded:
        said = complaint.rpartition(f"{plugin.library}: ")[2]
        reason = _explained(said, "its module does not load")
        if missing == _DRIVER:
            reason = _NO_DRIVER  # the loader may name another, which nobody looked for without one
    elif n_devices == 0:
        reason = _explained(complaint, "it is loaded, and finds no device")
    return Backend(plugin.name, plugin.distribution, is_loaded, reason)


def _preload(needs: Sequence[str]) -> str:
    """Loads NVIDIA's libraries from wherever they are installed: wheels, conda or a toolkit.

    The module itself looks only beside its own package; it does where cuda-pathfinder is absent.

    Returns:
        The first that is not found.
    """
    name = ""
    try:
        for name in needs:
            importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib(name)
    except ImportError:
        return ""
    except (RuntimeError, OSError) as failure:
        logger.debug("preload: %s", failure)
        return name
    return ""


def _absent(name: str) -> Backend:
    remedy = f"pip install phiggml-{name}" if name in _OURS else f"backends are {', '.join(_OURS)}"
    reason = f"PHIGGML_BACKENDS names it, and it is not installed: {remedy}."
    return Backend(name, "", False, reason)


def _explained(said: str, rule: str) -> str:
    """A sentence of ours where it is known what the words mean, else the rule and the words."""
    for words, sentence in _SENTENCES.items():
        if words in said:
            return sentence
    return f"{rule}: {said}" if said else f"{rule}."


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
