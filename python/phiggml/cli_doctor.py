"""phiggml devices and phiggml doctor: what is here, and whether it works."""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
    parser.add_argument("--json", action="store_true", help="as JSON, to paste into a report")
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


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What a check found.

    Attributes:
        check: its name.
        ok: whether it passed.
        detail: what was found, or what is wrong.
        remedy: what to do, where something is wrong.
    """

    check: str
    ok: bool
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        if self.ok:
            return _wrapped(f"{self.check:<12} ok: {self.detail}")
        said = _wrapped(f"{self.check:<12} failed: {self.detail}")
        return f"{said}\n{'':<12} {self.remedy}" if self.remedy else said


def _doctor(arguments: argparse.Namespace) -> int:
    facts = list(_facts())
    if arguments.json:
        findings = list(_findings())
        say_json(
            {
                "facts": [{"label": label, "value": value} for label, value in facts],
                "checks": [dataclasses.asdict(finding) for finding in findings],
                "devices": [dataclasses.asdict(device) for device in _devices_found()],
            }
        )
        return int(not all(finding.ok for finding in findings))
    for label, value in facts:
        say(f"{label:<12} {value}")
    n_failed = 0
    for finding in _findings():
        say(str(finding))
        n_failed += not finding.ok
    return int(n_failed > 0)


def _findings() -> Iterator[_Finding]:
    here = "Reinstall phiggml from source, on this machine."
    yield _found("backends", _check_backends, _REINSTALL)
    yield from _plugin_findings()
    yield _found("processor", _check_processor, here)
    yield _found("arrays", _check_arrays, _REINSTALL)
    yield _found("demo model", _check_model, _REINSTALL)
    for device in _devices_found():
        if device.kind != "cpu":
            check = functools.partial(_check_device, device.name)
            yield _found(device.name, check, "Update the driver of this device, or do not use it.")


def _found(name: str, check: Callable[[], str], remedy: str) -> _Finding:
    try:
        return _Finding(name, True, check())
    except (_CheckError, pg.PhiggmlError, OSError, MemoryError) as failure:
        return _Finding(name, False, str(failure) or type(failure).__name__, remedy)


def _devices_found() -> list[pg.Device]:
    try:
        return pg.devices()
    except pg.PhiggmlError:
        return []


def _plugin_findings() -> Iterator[_Finding]:
    """What became of each plugin. One that is left out on purpose is well."""
    try:
        backends = load_backends()
    except pg.PhiggmlError:
        return
    for backend in backends:
        detail = f"{backend.distribution}: {backend.reason or 'loaded.'}".removeprefix(": ")
        ok = (backend.loaded and not backend.reason) or "leaves it out" in backend.reason
        yield _Finding(backend.name, ok, detail)


def _wrapped(line: str) -> str:
    """A long line broken between words, where a terminal would break it anywhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(line, width, subsequent_indent=" " * 13, break_on_hyphens=False)


def _facts() -> Iterator[tuple[str, str]]:
    yield (
        "phiggml",
        f"{pg.__version__}, build {_core.runtime.build_id()}, in {Path(__file__).parent}",
    )
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "numpy", np.__version__
    yield from _core.runtime.versions()
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "threads", f"{thread_count(None, 'doctor')} of {os.cpu_count()} cores"
    for name in ("PHIGGML_CPU_VARIANT", "PHIGGML_BACKENDS"):
        if name in os.environ:
            yield "environment", f"{name}={os.environ[name]}"
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
    return f"{_chosen_module()}{' '.join(sorted(used))}"


def _chosen_module() -> str:
    """Which CPU module is loaded, and why that one."""
    chosen = Path(_core.runtime.cpu_module()).name
    if not chosen:
        return ""
    modules = [file for file in library_folder().iterdir() if "ggml-cpu" in file.name]
    if "PHIGGML_CPU_VARIANT" in os.environ:
        why = "named by PHIGGML_CPU_VARIANT"
    elif len(modules) == 1:
        why = "the only one that was built"
    else:
        why = f"the best of {len(modules)} for this CPU"
    return f"{chosen}, {why}: "


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


def _check_device(name: str) -> str:
    """The demo model on a device against the same on the CPU, all layers."""
    with tempfile.TemporaryDirectory(prefix="phiggml-doctor-") as folder:
        path = Path(folder) / "Q4_K_M.gguf"
        pg.convert(demo_checkpoint(), path, "Q4_K_M")
        logits = []
        for n_gpu_layers, devices in ((0, None), (99, [name])):
            with (
                pg.Model(path, n_gpu_layers=n_gpu_layers, devices=devices) as model,
                pg.Session(model, n_ctx=64) as session,
            ):
                logits.append(session.eval(model.tokenize("What is a quantized model?")))
    error = _relative_error(logits[1], logits[0])
    if not error <= 0.1:
        raise _CheckError(f"its logits of a Q4_K_M model differ from the CPU's by {error:.3f}.")
    return f"logits of a Q4_K_M model differ from the CPU's by {error:.4f}, relatively"


def _relative_error(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
