"""CMake's presets: each configures, or names the tools that are not there."""

from __future__ import annotations

import ctypes.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GGML = ROOT / "third_party" / "llama.cpp" / "ggml"
X86 = "x64 sse42 sandybridge ivybridge piledriver haswell skylakex cannonlake cascadelake icelake cooperlake zen4 alderlake sapphirerapids"  # noqa: E501


@dataclass(frozen=True)
class Preset:
    """What a preset builds.

    Attributes:
        modules: the backend modules that it installs.
        tools_are_here: looks for its tools in another way than CMake does.
        missing: what its refusal names where they are not.
    """

    modules: frozenset[str]
    tools_are_here: Callable[[], bool] = lambda: True
    missing: str = "nothing is ever missing"


def preset(modules: str, *tools: Callable[[], bool], missing: str = "") -> Preset:
    return Preset(
        frozenset(modules.split()), lambda: all(tool() for tool in tools), missing or "nothing"
    )


def program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) is not None for name in names)


def library(name: str) -> Callable[[], bool]:
    return lambda: ctypes.util.find_library(name) is not None


def is_apple() -> bool:
    return sys.platform == "darwin"


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


PRESETS = {
    "cpu": preset("cpu"),
    "cpu-all": preset(" ".join(f"cpu-{name}" for name in X86.split()), is_x86),
    "rpc": preset("cpu rpc"),
    "vulkan": preset(
        "cpu vulkan", program("glslc"), library("vulkan"), missing="Could NOT find Vulkan"
    ),
    "blas": preset("cpu blas", library("openblas"), missing="BLAS not found"),
    "cuda": preset("cpu cuda", program("nvcc"), missing="there is no CUDA toolkit here"),
    "hip": preset(
        "cpu hip", program("hipcc", "amdclang"),
        missing=r"Failed to find (HIP|ROCm) root directory|HIP compiler",
    ),
    "metal": preset("cpu metal blas", is_apple, missing="Could not find FOUNDATION_LIBRARY"),
    "sycl": preset("cpu sycl", program("icpx"), missing=r"CMAKE_CXX_COMPILER:\s+icpx\s+is not"),
}  # fmt: skip


def declared() -> dict[str, dict[str, str]]:
    """The presets' own settings, by name."""
    found = json.loads((ROOT / "CMakePresets.json").read_text("utf-8"))["configurePresets"]
    return {entry["name"]: entry["cacheVariables"] for entry in found}


def test_every_preset_is_tried_here() -> None:
    assert declared().keys() == PRESETS.keys()


def test_their_switches_are_upstreams() -> None:
    """One that upstream renamed would be taken in silence, and build nothing."""
    text = (GGML / "CMakeLists.txt").read_text("utf-8")
    names = set(re.findall(r"^(?:option|set) *\((GGML_\w+)", text, re.MULTILINE))
    switches = {name for settings in declared().values() for name in settings}
    assert {name for name in switches if name.startswith("GGML_")} <= names


def cublas(folder: Path) -> list[str]:
    """Where nvcc has no cuBLAS beside it: files that configuring takes for it."""
    (folder / "cublas_v2.h").touch()
    (folder / "libcublas.so").touch()
    return [f"-DPHIGGML_CUBLAS={folder / 'libcublas.so'}", f"-DPHIGGML_CUBLAS_INCLUDE={folder}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_it_configures_or_says_what_is_missing(name: str, tmp_path: Path) -> None:
    """Nothing is skipped: without the tools, the refusal is what is tried.

    CI has those of cpu, cpu-all, rpc, vulkan and blas, and nvcc where its machine brings it.
    """
    expected = PRESETS[name]
    pybind11 = [sys.executable, "-m", "pybind11", "--cmakedir"]
    found = subprocess.run(pybind11, capture_output=True, text=True, check=True).stdout.strip()
    build = tmp_path / "build"
    done = subprocess.run(
        [
            sys.executable, "-m", "cmake", "-S", ROOT, "--preset", name, "-B", build,
            f"-Dpybind11_DIR={found}", f"-DPython_EXECUTABLE={sys.executable}",
            *(cublas(tmp_path) if name == "cuda" else []),
        ],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    said = done.stdout + done.stderr
    if not expected.tools_are_here():
        assert done.returncode != 0
        assert re.search(expected.missing, said), said
        return
    assert done.returncode == 0, said
    script = (build / "cmake_install.cmake").read_text("utf-8")
    assert set(re.findall(r"/(?:lib)?ggml-([\w-]+)\.(?:so|dll)\"", script)) == expected.modules
