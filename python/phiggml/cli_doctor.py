"""phiggml devices and phiggml doctor: what is here, and whether it works."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml import _core
from phiggml.cli_demo import demo_checkpoint
from phiggml.cli_terminal import say, say_json, size, table
from phiggml.runtime import library_folder, load_backends, thread_count

__all__ = ["add_devices", "add_doctor"]

_REINSTALL = "Reinstall phiggml; from source, if wheels do not run here."
# What Linux calls a feature of the processor -> what ggml calls it, where speed depends on it.
_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
}


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml devices`."""
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    parser.set_defaults(verb=_devices)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml doctor`."""
    parser.set_defaults(verb=_doctor)


def _devices(arguments: argparse.Namespace) -> int:
    devices = pg.devices()
    if arguments.json:
        say_json([dataclasses.asdict(device) for device in devices])
        return 0
    rows = [
        (d.name, d.kind, d.backend, _free(d), size(d.memory_total), d.description) for d in devices
    ]
    say(table(("name", "kind", "backend", "free", "memory", "description"), rows, right=(3, 4)))
    return 0


def _free(device: pg.Device) -> str:
    """What ggml says of the CPU is all of its memory."""
    return "-" if device.kind == "cpu" else size(device.memory_free)


class _CheckError(Exception):
    """A check that did not pass, and why."""


def _doctor(_arguments: argparse.Namespace) -> int:
    for label, value in _facts():
        say(f"{label:<12} {value}")
    checks: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("backends", _check_backends, _REINSTALL),
        ("processor", _check_processor, "Reinstall phiggml from source, on this machine."),
        ("arrays", _check_arrays, _REINSTALL),
        ("demo model", _check_model, _REINSTALL),
    )
    n_failed = 0
    for name, check, remedy in checks:
        try:
            detail = check()
        except (_CheckError, pg.PhiggmlError, OSError, MemoryError) as failure:
            say(f"{name:<12} failed: {failure or type(failure).__name__}\n{'':<12} {remedy}")
            n_failed += 1
        else:
            say(_wrapped(f"{name:<12} ok: {detail}"))
    return 1 if n_failed else 0


def _wrapped(line: str) -> str:
    """A long line broken between words, where a terminal would break it anywhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(line, width, subsequent_indent=" " * 13, break_on_hyphens=False)


def _facts() -> Iterator[tuple[str, str]]:
    yield "phiggml", f"{pg.__version__} in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "numpy", np.__version__
    yield from _core.runtime.versions()
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "threads", f"{thread_count(None, 'doctor')} of {os.cpu_count()} cores"
    yield "libraries", str(library_folder())
    for file in sorted(library_folder().glob("*")):
        yield "", f"{file.name}, {size(file.stat().st_size)}"


def _check_backends() -> str:
    return ", ".join(f"{device.name} ({device.kind})" for device in pg.devices())


def _check_processor() -> str:
    """Whether the CPU module uses what the CPU has."""
    load_backends()
    used = {name for name, value in _core.runtime.cpu_features() if value != "0"}
    missing = sorted(
        name for flag, name in _FEATURES.items() if flag in _processor_flags() and name not in used
    )
    if missing:
        raise _CheckError(f"the CPU has {', '.join(missing)}, which the CPU module does not use.")
    return " ".join(sorted(used))


def _processor_flags() -> frozenset[str]:
    """As Linux lists them; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


def _check_arrays() -> str:
    x = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    # A mean square error beyond these is no rounding: half again of what 8 and 4.5 bits give.
    errors = {}
    for type, bound in (("Q8_0", 0.009), ("Q4_K", 0.12)):
        errors[type] = _relative_error(pg.quantize(x, type).dequantize(), x)
        if not errors[type] <= bound:
            raise _CheckError(
                f"{type} gives a relative error of {errors[type]:.4f}, not <= {bound}."
            )
    return ", ".join(f"{type} relative error {error:.4f}" for type, error in errors.items())


def _check_model() -> str:
    """A quantized product against the same one in float32."""
    logits = {}
    with tempfile.TemporaryDirectory(prefix="phiggml-doctor-") as folder:
        for type in ("F32", "Q4_K_M"):
            path = Path(folder) / f"{type}.gguf"
            pg.convert(demo_checkpoint(), path, type)
            with pg.Session(path, n_ctx=64) as session:
                tokens = session.model.tokenize("What is a quantized model, and what is it for?")
                logits[type] = session.eval(tokens)
    error = _relative_error(logits["Q4_K_M"], logits["F32"])
    # NaN is no number below the bound either.
    if not error <= 0.5:
        raise _CheckError(f"Q4_K_M logits differ from F32 by {error:.3f}, relatively.")
    return f"Q4_K_M logits differ from F32 by {error:.3f}, relatively"


def _relative_error(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
