"""CUDA plugins, made up: NVIDIA's libraries are loaded first, or a sentence names what is missing.

Versions are 999 here, so that nothing is found on a machine that has the real ones.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from made_up_plugins import compiled, described, install, loaded, made_up_backend

NEEDS = ("cuda", "cudart", "cublas")
MODULE = "libggml-cuda.so"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="makes ELF libraries with cc"
)

# Stands for cuda-pathfinder: knows a folder of libraries, and says what it was asked for.
PATHFINDER = """
import ctypes, pathlib
here = pathlib.Path(__file__).parents[2]
def load_nvidia_dynamic_lib(name):
    with (here / "asked").open("a") as file:
        file.write(name + " ")
    library = here / "elsewhere" / f"lib{name}.so.999"
    if not library.is_file():
        raise RuntimeError(f"{name} is nowhere")
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
"""


def install_pathfinder(folder: Path, source: str) -> None:
    package = folder / "cuda" / "pathfinder"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)


def nvidia_libraries(folder: Path) -> list[Path]:
    """Libraries in a folder that the system's loader does not know."""
    return [compiled(folder / "elsewhere" / f"lib{name}.so.999", "") for name in NEEDS]


def test_one_sentence_says_what_is_missing(tmp_path: Path) -> None:
    install_pathfinder(tmp_path, "raise ImportError('it is not installed')\n")
    driver, runtime, cublas = nvidia_libraries(tmp_path)
    for name, linked in (("driver", driver), ("runtime", runtime), ("cublas", cublas)):
        package = install(tmp_path, name, described(MODULE, needs=NEEDS))
        made_up_backend(package / MODULE, linked)
        linked.unlink()
    old = compiled(tmp_path / "elsewhere" / "libcublas.so.12", "")
    made_up_backend(install(tmp_path, "cublas12", described(MODULE)) / MODULE, old)
    old.unlink()
    backends, kinds, warned = loaded(tmp_path)
    expected = {
        "driver": "There is no NVIDIA driver here: install one to use the GPU.",
        "runtime": "CUDA's runtime is not here: pip install nvidia-cuda-runtime.",
        "cublas": "cuBLAS is not here: pip install nvidia-cublas.",
        "cublas12": "cuBLAS is not here: pip install nvidia-cublas-cu12.",
    }
    for name, sentence in expected.items():
        assert backends[name] == [f"phiggml-{name} 0.1.0", False, sentence]
        assert f"backend {name}: {sentence}" in warned
    assert "cpu" in kinds


def test_a_driver_that_gives_no_device_says_why(tmp_path: Path) -> None:
    complaints = {
        "old": "CUDA driver version is insufficient for CUDA runtime version",
        "none": "no CUDA-capable device is detected",
        "other": "system not yet initialized",
        "silent": "",
    }
    for name, complaint in complaints.items():
        package = install(tmp_path, name, described(MODULE))
        made_up_backend(package / f"{MODULE}", complaint=complaint)
    backends, kinds, _ = loaded(tmp_path)
    rule = "it is loaded, and finds no device"
    expected = {
        "old": "The NVIDIA driver is too old for this plugin: update it.",
        "none": "The NVIDIA driver finds no GPU here.",
        "other": f"{rule}: init: failed to initialize: system not yet initialized.",
        "silent": f"{rule}.",
    }
    for name, sentence in expected.items():
        assert backends[name] == [f"phiggml-{name} 0.1.0", True, sentence]
    assert kinds.count("gpu") == 0 and "cpu" in kinds


def test_the_libraries_are_loaded_from_where_pathfinder_finds_them(tmp_path: Path) -> None:
    install_pathfinder(tmp_path, PATHFINDER)
    libraries = nvidia_libraries(tmp_path)
    package = install(tmp_path, "cuda13", described(MODULE, needs=NEEDS))
    made_up_backend(package / MODULE, *libraries)
    backends, _, _ = loaded(tmp_path)
    assert backends["cuda13"][1:] == [True, "it is loaded, and finds no device."]
    assert (tmp_path / "asked").read_text().split() == list(NEEDS)


def test_without_a_driver_nothing_large_is_loaded(tmp_path: Path) -> None:
    install_pathfinder(tmp_path, PATHFINDER)
    driver, *others = nvidia_libraries(tmp_path)
    package = install(tmp_path, "cuda13", described(MODULE, needs=NEEDS))
    made_up_backend(package / MODULE, *others, driver)
    driver.unlink()
    backends, kinds, _ = loaded(tmp_path)
    assert backends["cuda13"][1:] == [
        False,
        "There is no NVIDIA driver here: install one to use the GPU.",
    ]
    assert (tmp_path / "asked").read_text().split() == ["cuda"]
    assert "cpu" in kinds


def test_pathfinder_is_imported_for_plugins_that_need_it_only(tmp_path: Path) -> None:
    install_pathfinder(tmp_path, "raise SystemExit('nobody asked')\n")
    made_up_backend(install(tmp_path, "vulkan", described(MODULE)) / MODULE)
    backends, _, _ = loaded(tmp_path)
    assert backends["vulkan"][1] is True
