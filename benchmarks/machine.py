"""What every benchmark prints first: the machine and the versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

import phiggml as pg
from phiggml import _core


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe() -> str:
    """Two lines: processor, cores and vector units; versions."""
    pg.devices()
    units = [name for name, value in _core.runtime.cpu_features() if value == "1"]
    compiled_in = ", ".join(f"{name} {version}" for name, version in _core.runtime.versions())
    cores = len(os.sched_getaffinity(0))
    return (
        f"{processor()}, {cores} cores, {' '.join(units)}\n"
        f"phiggml {pg.__version__}, {compiled_in}, numpy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
