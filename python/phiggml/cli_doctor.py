"""phiggml devices and phiggml doctor: what is here, and whether it works."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import phiggml as pg
from phiggml import _core
from phiggml.cli_self_test import (
    CheckError,
    check_arrays,
    check_device,
    check_model,
    check_products,
)
from phiggml.cli_terminal import say, say_json, size, table
from phiggml.gguf_text import one_line
from phiggml.runtime import library_folder, load_backends, thread_count

__all__ = ["add_devices", "add_doctor"]

_REINSTALL = "Reinstall phiggml; from source, if wheels do not run here."
_HERE = "Reinstall phiggml from source, on this machine."
_UPDATE = "Update the driver of this device, or do not use it."
_REBUILD = "Install what it names, or build phiggml without this backend."
# Errors that say themselves what to do.
_OWN_REMEDIES = (
    "Unset it to let the best one be chosen.",
    "Reinstall phiggml from source.",
    "Reinstall phiggml.",
)
_REQUIRED = ("numpy", "jinja2", "tqdm")
_EXTRAS = {"huggingface_hub": "hub", "fsspec": "remote", "matplotlib": "plot"}
# What changes which devices there are.
_VARIABLES = (
    "PHIGGML_CPU_VARIANT",
    "PHIGGML_BACKENDS",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "ONEAPI_DEVICE_SELECTOR",
)
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
_LABEL_COLUMNS = 13


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml devices`."""
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    parser.set_defaults(verb=_devices)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml doctor`."""
    parser.add_argument("--json", action="store_true", help="as JSON, to paste into a report")
    parser.add_argument(
        "--types",
        metavar="Q4_K_M,...",
        default="Q4_K_M",
        help="what each GPU computes a model with, beside the CPU; default: %(default)s",
    )
    parser.set_defaults(verb=_doctor)


def _devices(arguments: argparse.Namespace) -> int:
    devices = pg.devices()
    if arguments.json:
        say_json([dataclasses.asdict(device) for device in devices])
        return 0
    rows = [(d.name, d.kind, d.backend, *_memory(d), d.description) for d in devices]
    say(table(("name", "kind", "backend", "free", "memory", "description"), rows, right=(3, 4)))
    return 0


def _memory(device: pg.Device) -> tuple[str, str]:
    """Free and in all. What ggml says of the CPU is all of its memory; BLAS has none of its own."""
    if device.memory_total == 0:
        return "-", "-"
    free = "-" if device.kind == "cpu" else size(device.memory_free)
    return free, size(device.memory_total)


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
            return _labelled(self.check, f"ok: {self.detail}")
        said = _labelled(self.check, f"failed: {self.detail}")
        return f"{said}\n{_labelled('', self.remedy)}" if self.remedy else said


def _doctor(arguments: argparse.Namespace) -> int:
    types = _model_types(arguments.types)
    with _complaints() as complaints:
        facts = list(_facts())
    if arguments.json:
        findings = list(_findings(types, complaints))
        say_json(
            {
                "facts": [{"label": label, "value": value} for label, value in facts],
                "checks": [dataclasses.asdict(finding) for finding in findings],
                "devices": [dataclasses.asdict(device) for device in _devices_found()],
            }
        )
        return int(not all(finding.ok for finding in findings))
    last = ""
    for label, value in facts:
        say(_labelled("" if label == last else label, value))
        last = label
    n_failed = 0
    for finding in _findings(types, complaints):
        say(str(finding))
        n_failed += not finding.ok
    return int(n_failed > 0)


def _model_types(text: str) -> list[str]:
    """The types in a list; an unknown one is told before anything is computed."""
    known = {type.casefold(): type for type in pg.model_types()}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name.casefold() not in known]
    if unknown:
        raise pg.InputError(
            f"doctor: {unknown[0]!r} is no whole-model type. Name such as Q4_K_M,Q8_0."
        )
    return [known[name.casefold()] for name in names]


def _findings(types: Sequence[str], complaints: Sequence[str]) -> Iterator[_Finding]:
    yield _found("backends", _check_backends, _REINSTALL)
    yield from _module_findings(complaints)
    yield from _plugin_findings()
    yield _found("processor", _check_processor, _HERE)
    yield _found("arrays", check_arrays, _REINSTALL)
    yield _found("products", check_products, _REINSTALL)
    yield _found("demo model", check_model, _REINSTALL)
    for device in _devices_found():
        if device.kind == "gpu":
            check = functools.partial(check_device, device.name, types)
            yield _found(device.name, check, _UPDATE)


def _found(name: str, check: Callable[[], str], remedy: str) -> _Finding:
    try:
        return _Finding(name, True, check())
    except (CheckError, pg.PhiggmlError, OSError, MemoryError) as failure:
        said = str(failure) or type(failure).__name__
        own = next((own for own in _OWN_REMEDIES if said.endswith(f" {own}")), "")
        return _Finding(name, False, said.removesuffix(f" {own}"), own or remedy)


def _devices_found() -> list[pg.Device]:
    try:
        return pg.devices()
    except pg.PhiggmlError:
        return []


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Errors of the log, which says of modules that do not load; each is tried but once."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("phiggml")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _module_findings(complaints: Sequence[str]) -> Iterator[_Finding]:
    """What became of the backends that were built into this installation."""
    for file in sorted(library_folder().glob("*ggml-*")):
        name = file.stem.removeprefix("lib").removeprefix("ggml-")
        if name.startswith("phiggml-") or name.partition("-")[0] == "cpu":
            continue
        words = [line.rpartition(f"{file}: ")[2] for line in complaints if str(file) in line]
        if words:
            detail = f"{file.name} does not load: {words[0].strip()}"
            yield _Finding(name, False, detail, _REBUILD)
        else:
            yield _Finding(name, True, f"{file.name}, a part of this build")


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


def _labelled(label: str, text: str) -> str:
    """A long line broken between words, where a terminal would break it anywhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(
        text,
        max(width, 2 * _LABEL_COLUMNS),
        initial_indent=f"{label:<{_LABEL_COLUMNS - 1}} ",
        subsequent_indent=" " * _LABEL_COLUMNS,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _facts() -> Iterator[tuple[str, str]]:
    build = _core.runtime.build_id()
    yield "phiggml", f"{pg.__version__}, build {build}, in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in _REQUIRED)
    extras = (f"{name} {_version(name)} [{extra}]" for name, extra in _EXTRAS.items())
    yield "extras", ", ".join(extras)
    yield from _core.runtime.versions()
    libc = " ".join(platform.libc_ver()).strip()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "system", f"{system}, {libc}" if libc else system
    yield "threads", f"{thread_count(None, 'doctor')} of {os.cpu_count()} cores"
    for name in _VARIABLES:
        if name in os.environ:
            yield "environment", f"{name}={os.environ[name]}"
    yield "libraries", str(library_folder())
    for file in sorted(library_folder().glob("*")):
        with contextlib.suppress(OSError):  # a link to nowhere
            yield "library", f"{file.name}, {size(file.stat().st_size)}"
    for device in _devices_found():
        free, memory = _memory(device)
        said = [f"{device.name} ({device.kind}): {one_line(device.description)}"]
        said += [memory] if memory != "-" else []
        said += [f"{free} free"] if free != "-" else []
        yield "device", ", ".join(said)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _check_backends() -> str:
    return ", ".join(f"{device.name} ({device.kind})" for device in pg.devices())


def _check_processor() -> str:
    """Whether the CPU module uses what the CPU has."""
    load_backends()
    used = {name for name, value in _core.runtime.cpu_features() if value != "0"}
    flags = _processor_flags()
    idle = {name for flag, name in _FEATURES.items() if flag in flags} - used
    if "AVX512_VNNI" in used:
        idle.discard("AVX_VNNI")  # does the same on shorter vectors
    said = f"{_chosen_module()}{' '.join(sorted(used))}"
    if not idle:
        return said
    names = ", ".join(sorted(idle))
    if len(_cpu_modules()) == 1:
        raise CheckError(f"the CPU has {names}, which the CPU module does not use.")
    return f"{said}; not in use: {names}"


def _chosen_module() -> str:
    """Which CPU module is loaded, and why that one."""
    chosen = Path(_core.runtime.cpu_module()).name
    if not chosen:
        return ""
    n_modules = len(_cpu_modules())
    if os.environ.get("PHIGGML_CPU_VARIANT"):
        why = "named by PHIGGML_CPU_VARIANT"
    elif n_modules == 1:
        why = "the only one that was built"
    else:
        why = f"the best of {n_modules} for this CPU"
    return f"{chosen}, {why}: "


def _cpu_modules() -> list[Path]:
    return [file for file in library_folder().glob("*") if "ggml-cpu" in file.name]


def _processor_flags() -> frozenset[str]:
    """As Linux lists them; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()
