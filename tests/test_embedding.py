"""Other extensions link the same ggml: by compiler flags alone, and by the CMake package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from phiggml import _core

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "embedding"

PROGRAM = r"""
#include <ggml.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml-opt.h>
#include <gguf.h>
#include <llama.h>
#include <stdio.h>

int main(void) {
    float x[256];
    unsigned char bytes[144];
    for (int i = 0; i < 256; ++i) {
        x[i] = (float) (i * 37 % 101) - 50.0f;
    }
    size_t n = ggml_quantize_chunk(GGML_TYPE_Q4_K, x, bytes, 0, 1, 256, NULL);
    printf("%s %d ", ggml_version(), (int) llama_supports_mmap());
    for (size_t i = 0; i < n; ++i) {
        printf("%02x", bytes[i]);
    }
    return 0;
}
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_program_in_c_links(tmp_path: Path) -> None:
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM, "utf-8")
    flags = ["-std=c11", "-Wall", "-Werror", f"-I{pg.get_include()}", f"-L{pg.get_library_dir()}"]
    libraries = ["-lphiggml-llama", "-lphiggml-ggml", "-lphiggml-ggml-base"]
    rpath = f"-Wl,-rpath,{pg.get_library_dir()}"
    run("cc", *flags, source, "-o", program, *libraries, rpath)
    x = (np.arange(256) * 37 % 101 - 50).astype(np.float32)
    bytes = pg.quantize(x, "Q4_K").data.tobytes().hex()
    assert run(program) == f"{dict(_core.runtime.versions())['ggml']} 1 {bytes}"


PACKAGE = """
cmake_minimum_required(VERSION 3.25)
project(finds LANGUAGES CXX)
find_package(phiggml 99 QUIET CONFIG PATHS ${folder} NO_DEFAULT_PATH)
message(STATUS "99: ${phiggml_FOUND}")
find_package(phiggml ${version} REQUIRED CONFIG PATHS ${folder} NO_DEFAULT_PATH)
find_package(phiggml REQUIRED CONFIG PATHS ${folder} NO_DEFAULT_PATH)
foreach(target ggml-base ggml llama)
    get_target_property(file phiggml::${target} IMPORTED_LOCATION)
    message(STATUS "${target}: ${file}")
endforeach()
message(STATUS "${phiggml_GGML_VERSION} ${phiggml_LLAMA_BUILD}")
message(STATUS "${phiggml_INCLUDE_DIR} ${phiggml_LIBRARY_DIR}")
"""


def cmake() -> list[str]:
    """The cmake of this Python, where its package is."""
    return [sys.executable, "-m", "cmake"]


def test_cmake_finds_the_package(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PACKAGE, "utf-8")
    said = run(
        *cmake(), "-S", tmp_path, "-B", tmp_path / "build",
        f"-Dfolder={pg.get_cmake_dir()}", f"-Dversion={pg.__version__}",
    )  # fmt: skip
    versions = dict(_core.runtime.versions())
    assert f"-- {versions['ggml']} {versions['llama.cpp']}\n" in said
    assert f"-- {pg.get_include()} {pg.get_library_dir()}\n" in said
    assert "99: 0" in said
    libraries = re.findall(r"-- (ggml-base|ggml|llama): (.*)", said)
    assert [name for name, _ in libraries] == ["ggml-base", "ggml", "llama"]
    assert all(Path(file).is_file() for _, file in libraries)


USES = r"""
import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np

# Before phiggml is there, its libraries are not.
[path] = Path(sys.argv[1], "quantized_search").glob("_core.*")
loader = importlib.machinery.ExtensionFileLoader("_core", str(path))
try:
    importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
except ImportError as e:
    assert "phiggml-ggml" in str(e), e
else:
    raise AssertionError("it carries a ggml of its own")

import phiggml as pg
from quantized_search import _core, device_names, nearest

rng = np.random.default_rng(1)
x = rng.standard_normal((500, 256))
for type in ("Q4_K", "IQ4_NL", "F16"):
    vectors = pg.quantize(x, type)
    query = x[7] + 0.1 * rng.standard_normal(256)
    rows, cosines = nearest(vectors, query, k=20)
    numbers = vectors.dequantize(dtype=np.float64)
    expected = numbers @ query / np.linalg.norm(numbers, axis=1) / np.linalg.norm(query)
    assert np.array_equal(rows, np.argsort(-expected)[:20]) and rows[0] == 7
    assert np.allclose(cosines, expected[rows], rtol=0, atol=1e-6)

assert device_names() == [device.name for device in pg.devices()] != []
maps = Path("/proc/self/maps").read_text()
assert len(set(re.findall(r"\S*ggml-base\S*", maps))) == 1, maps

data, query = vectors.data, np.ones(256, np.float32)
f16 = vectors.type.id
unknown = [(data, 99, query), (data, -1, query), (data, 24, query)]
for bad in (*unknown, (data, f16, query[1:]), (data[0], f16, query), (data, f16, query[None])):
    try:
        _core.cosines(*bad)
    except ValueError:
        continue
    raise AssertionError("taken: " + repr(bad))

[block] = re.findall(r"```python\n(.*?)```", Path(sys.argv[2], "README.md").read_text(), re.DOTALL)
names = {}
exec(block, names)
assert names["rows"][0] == 7 and len(names["rows"]) == 5
print("all of it")
"""


@pytest.mark.slow
def test_the_example_builds_and_runs(tmp_path: Path) -> None:
    """With pip, as users do, but from what is installed here alone."""
    target = tmp_path / "target"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-build-isolation", "--no-deps", "--no-index", "--target", target, EXAMPLE,
    )  # fmt: skip
    said = run(sys.executable, "-c", USES, target, EXAMPLE, PYTHONPATH=str(target))
    assert said == "all of it\n"
