"""The distributions agree: one version, one list of plugins, pins both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import phiggml as pg

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"cuda": "cuda13", "cuda12": "cuda12", "vulkan": "vulkan", "hip": "rocm", "sycl": "sycl"}
PLUGINS = {*EXTRAS.values(), "rpc"}  # rpc is the tests' own, and has no extra


def field(text: str, name: str) -> str:
    """The value of a line NAME = VALUE."""
    [value] = re.findall(rf"^{re.escape(name)} = (.*)$", text, re.MULTILINE)
    return str(value)


def test_there_is_one_version() -> None:
    base = (ROOT / "pyproject.toml").read_text("utf-8")
    assert field(base, "version") == f'"{pg.__version__}"'
    for extra, plugin in EXTRAS.items():
        assert field(base, extra) == f'["phiggml-{plugin}=={pg.__version__}"]'


def test_every_plugin_is_declared() -> None:
    assert {path.parent.name for path in ROOT.glob("backends/*/pyproject.toml")} == PLUGINS
    options = (ROOT / "cmake" / "PluginOptions.cmake").read_text("utf-8")
    assert set(re.findall(r"^set\(plugin_(\w+) ", options, re.MULTILINE)) == PLUGINS


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_plugin_fits_this_version_only(name: str) -> None:
    text = (ROOT / "backends" / name / "pyproject.toml").read_text("utf-8")
    assert field(text, "name") == f'"phiggml-{name}"'
    assert field(text, "version") == f'"{pg.__version__}"'
    assert json.loads(field(text, "dependencies"))[0] == f"phiggml=={pg.__version__}"
    assert field(text, name) == f'"phiggml_{name}"'  # the entry point
    assert field(text, "cmake.define.PHIGGML_PLUGIN") == f'"{name}"'
    assert (ROOT / "backends" / name / f"phiggml_{name}" / "__init__.py").is_file()


def test_every_backend_has_a_preset() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text("utf-8"))["configurePresets"]
    names = {preset["name"] for preset in presets}
    assert names >= {"cpu", "cpu-all", "cuda", "hip", "metal", "vulkan", "sycl", "blas"}
