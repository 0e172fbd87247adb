"""Libraries that lie where upstream looks for backends: nothing of phiggml's loads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "examples" / "phi3-nano"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="makes libraries as Linux has them"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="makes libraries"),
]

# Writes its own name when it is loaded.
SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) {
    Dl_info self;
    FILE * file = fopen(getenv("PLANTED_SAYS"), "a");
    if (file != NULL && dladdr((void *) loaded, &self) != 0) {
        fprintf(file, "%s\\n", self.dli_fname);
    }
    if (file != NULL) {
        fclose(file);
    }
}
"""
BACKENDS = ("blas", "cuda", "hip", "metal", "opencl", "rpc", "sycl", "vulkan", "cpu", "cpu-haswell")
# All that may load a backend, the first to do so first; upstream's own search only at the end, to
# see that the libraries do lie where it looks.
WORK = """
import ctypes, os, site, sys
from pathlib import Path
nano, work, says, *paths = sys.argv[1:]
for path in paths:
    site.addsitedir(path)
import numpy as np
import phiggml as pg
file, quantized = Path(work, "f.gguf"), Path(work, "q.gguf")
pg.convert(nano, file, "F16")
pg.quantize_model(file, quantized, "Q4_K_M")
pg.quantize(np.ones((2, 256), np.float32), "Q4_K")
pg.QuantType("Q4_K")
with pg.Session(quantized, n_ctx=64) as session:
    session.eval([5, 6, 7])
print(sorted({device.backend for device in pg.devices()}))
print(Path(says).exists() and Path(says).read_text())
ctypes.CDLL(str(Path(pg.get_library_dir()) / "libphiggml-ggml.so")).ggml_backend_load_all()
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Folders of planted libraries: the current one, the interpreter's, and a named file."""
    source = tmp_path / "planted.c"
    source.write_text(SOURCE)
    library = tmp_path / "planted.so"
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    folders = {name: tmp_path / name for name in ("current", "interpreter", "named")}
    for folder in folders.values():
        folder.mkdir()
        for backend in BACKENDS:
            shutil.copy(library, folder / f"libggml-{backend}.so")
    shutil.copy(Path(sys.executable).resolve(), folders["interpreter"] / "python")
    return folders


def test_no_planted_library_is_loaded(places: dict[str, Path], tmp_path: Path) -> None:
    says = tmp_path / "says"
    paths = [path for path in sys.path if path.endswith("-packages")]
    result = subprocess.run(
        [places["interpreter"] / "python", "-c", WORK, NANO, tmp_path, says, *paths],
        env={
            **os.environ,
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
            "PHIGGML_BACKENDS": "none",
            "PLANTED_SAYS": str(says),
            "GGML_BACKEND_PATH": str(places["named"] / "libggml-blas.so"),
        },
        cwd=places["current"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["['CPU']", "False"]
    loaded = {Path(line).parent.name for line in says.read_text().splitlines()}
    assert loaded == places.keys()
