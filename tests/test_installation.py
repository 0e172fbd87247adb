"""Installations that lost a part: a sentence that says what to do, and no dead process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import phiggml as pg
from phiggml import _core

CORE = Path(str(_core.__file__))
IMPORT = "import: {folder}: the compiled half of phiggml does not load: "
REMEDY = "Reinstall phiggml; from source, if wheels do not run here."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package as a wheel has it: Python and what is compiled in one folder."""
    folder = tmp_path / "phiggml"
    unwanted = shutil.ignore_patterns("__pycache__", "lib", "include", CORE.name)
    shutil.copytree(Path(str(pg.__file__)).parent, folder, ignore=unwanted)
    shutil.copy(CORE, folder)
    shutil.copytree(CORE.parent / "lib", folder / "lib")
    return folder


def said(folder: Path, code: str, **environment: str) -> str:
    """What a process that imports this package prints; ImportErrors and ours are printed too."""
    # Without -S an editable installation would come first.
    script = f"""
import sys
sys.path = {[str(folder.parent), *sys.path[1:]]!r}
try:
    import phiggml as pg
    {code}
except (ImportError, RuntimeError) as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def cut(library: Path) -> None:
    data = library.read_bytes()
    library.unlink()
    library.write_bytes(data[: len(data) // 2])


def cpu_modules(folder: Path) -> list[Path]:
    return sorted((folder / "lib").glob("libggml-cpu*.so"))


def test_a_whole_one_works(folder: Path) -> None:
    assert said(folder, "print(pg.devices()[0].kind, pg.__file__)") == f"cpu {folder}/__init__.py"


def test_without_its_libraries(folder: Path) -> None:
    shutil.rmtree(folder / "lib")
    text = said(folder, "")
    assert text.startswith("ImportError " + IMPORT.format(folder=folder) + "lib")
    assert "cannot open shared object file" in text and text.endswith(f". {REMEDY}")


def test_without_a_core_for_this_python(folder: Path) -> None:
    (folder / CORE.name).unlink()
    words = IMPORT.format(folder=folder)
    assert said(folder, "") == f"ImportError {words}there is none for this Python. {REMEDY}"
    shutil.rmtree(folder / "_core")  # the folder of stubs
    assert said(folder, "").startswith(f"ImportError {words}No module named 'phiggml._core'. ")


@pytest.mark.skipif(sys.platform != "linux", reason="cuts off libraries of Linux")
def test_with_a_cpu_module_that_is_cut_off(folder: Path) -> None:
    # The system's loader maps what is missing, and dies of SIGBUS.
    for module in cpu_modules(folder):
        cut(module)
    first = cpu_modules(folder)[0]
    sentence = f"DeviceError load: {first}: this CPU module is cut off. Reinstall phiggml."
    assert said(folder, "pg.devices()") == sentence
    variant = first.stem.rpartition("-")[2]
    variant = variant if variant != "cpu" else ""
    assert said(folder, "pg.devices()", PHIGGML_CPU_VARIANT=variant) == sentence


@pytest.mark.skipif(sys.platform != "linux", reason="cuts off libraries of Linux")
def test_another_module_that_is_cut_off_is_left_alone(folder: Path) -> None:
    lost = folder / "lib" / "libggml-lost.so"
    shutil.copy(cpu_modules(folder)[0], lost)
    cut(lost)
    code = "import logging; logging.basicConfig(stream=sys.stdout); print(pg.devices()[0].kind)"
    lines = said(folder, code).splitlines()
    assert lines == [f"ERROR:phiggml:load: {lost}: it is cut off.", "cpu"]


def test_without_any_cpu_module(folder: Path) -> None:
    for module in cpu_modules(folder):
        module.unlink()
    text = said(folder, "pg.devices()")
    assert "no CPU module there runs on this machine. Reinstall phiggml from source." in text
