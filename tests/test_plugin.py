"""Backends that are distributions of their own: found, refused with a sentence, chosen by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from phiggml import _core

LIST = """
import json, logging
warned = []
handler = logging.Handler()
handler.emit = lambda record: warned.append(record.getMessage())
logging.getLogger("phiggml").addHandler(handler)
import phiggml as pg
from phiggml.runtime import load_backends
found = {b.name: [b.distribution, b.loaded, b.reason] for b in load_backends()}
print(json.dumps([found, [d.kind for d in pg.devices()], warned]))
"""


def install(folder: Path, name: str, description: Mapping[str, Any] | bytes | None) -> Path:
    """The package of a distribution with an entry point, as pip would leave both."""
    info = folder / f"phiggml_{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: phiggml-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[phiggml.backends]\n{name} = phiggml_{name}\n")
    package = folder / f"phiggml_{name}"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('nobody imports a plugin')\n")
    if description is not None:
        text = description if isinstance(description, bytes) else json.dumps(description).encode()
        (package / "plugin.json").write_bytes(text)
    return package


def described(library: str, build_id: str | None = None) -> dict[str, str]:
    current = _core.runtime.build_id() if build_id is None else build_id
    return {"name": "x", "build_id": current, "library": library}


def loaded(folder: Path, **environment: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """What a process with these distributions says of backends, kinds of devices and warnings."""
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    backends, kinds, warned = json.loads(done.stdout)
    return backends, kinds, warned


def test_a_plugin_that_cannot_be_used_says_why_and_the_cpu_goes_on(tmp_path: Path) -> None:
    (install(tmp_path, "broken", described("libggml-broken.so")) / "libggml-broken.so").write_bytes(
        b"no library" * 100
    )
    install(tmp_path, "stale", described("libggml-stale.so", "0123456789ab"))
    install(tmp_path, "empty", None)
    install(tmp_path, "odd", b"[1, 2")
    install(tmp_path, "gone", described("libggml-gone.so"))
    install(tmp_path, "outside", described("../broken/libggml-broken.so"))
    shutil.rmtree(install(tmp_path, "removed", described("x.so")))
    backends, kinds, warned = loaded(tmp_path)
    expected = {
        "broken": "invalid ELF header",
        "stale": "built for another phiggml (build 0123456789ab",
        "empty": "plugin.json cannot be read. Install it again.",
        "odd": "plugin.json cannot be read. Install it again.",
        "gone": "'libggml-gone.so' is not in",
        "outside": "is not in",
        "removed": "its package 'phiggml_removed' is not there",
    }
    for name, sentence in expected.items():
        distribution, is_loaded, reason = backends[name]
        assert (distribution, is_loaded) == (f"phiggml-{name} 0.1.0", False)
        if name != "broken" or sys.platform == "linux":
            assert sentence in reason
        assert any(line.startswith(f"backend {name}: ") for line in warned)
    assert "cpu" in kinds


@pytest.mark.skipif(shutil.which("cc") is None, reason="makes a library that lacks another")
def test_a_driver_that_is_missing_is_named(tmp_path: Path) -> None:
    package = install(tmp_path, "cuda", described("libggml-cuda.so"))
    driver = tmp_path / "libcuda.so.1"
    compile_command = ["cc", "-shared", "-x", "c", "/dev/null", "-o"]
    subprocess.run([*compile_command, driver, "-Wl,-soname,libcuda.so.1"], check=True)
    link = ["-x", "none", "-Wl,--no-as-needed", str(driver)]
    subprocess.run([*compile_command, package / "libggml-cuda.so", *link], check=True)
    driver.unlink()
    backends, kinds, _ = loaded(tmp_path)
    assert "libcuda.so.1" in backends["cuda"][2]
    assert backends["cuda"][2].endswith(
        "There is no NVIDIA driver here: install one to use the GPU."
    )
    assert "cpu" in kinds


@pytest.mark.parametrize(
    ("choice", "states"),
    [
        ("none", {"one": "leaves it out", "two": "leaves it out"}),
        ("", {"one": "leaves it out", "two": "leaves it out"}),
        ("two", {"one": "leaves it out", "two": "is not in"}),
        (" two , one", {"one": "is not in", "two": "is not in"}),
        ("two,none-such", {"one": "leaves it out", "two": "is not in",
                           "none-such": "pip install phiggml-none-such"}),
    ],
)  # fmt: skip
def test_backends_are_chosen_by_name(tmp_path: Path, choice: str, states: dict[str, str]) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, described(f"libggml-{name}.so"))
    backends, kinds, _ = loaded(tmp_path, PHIGGML_BACKENDS=choice)
    ours = {name: state for name, state in backends.items() if name in {"one", "two", "none-such"}}
    assert ours.keys() == states.keys()
    for name, sentence in states.items():
        assert sentence in ours[name][2]
    assert "cpu" in kinds
