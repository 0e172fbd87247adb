"""Plugins as pip installs them: found, loaded, and run with no, some and all layers offloaded.

    PHIGGML_TEST_PLUGINS=vulkan,cuda13 pytest -m plugins tests/test_offload.py

Without that it is RPC, whose device is a CPU on the loopback interface, and Vulkan, on whatever
driver comes first (Mesa's lavapipe where there is no GPU). One that is absent fails.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offloaded
import phiggml as pg
from phiggml import _core
from phiggml.plugin import installed_plugins

PLUGINS = os.environ.get("PHIGGML_TEST_PLUGINS", "rpc,vulkan").split(",")
NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
N_LAYER = 4

# Relative errors (nrmse) against the CPU, and against the file's own weights in float32. Products
# with float weights differ by the order of sums, and on most devices by factors rounded to 16 bits;
# those with quantized ones by activations rounded to 8 bits, on the CPU and on some devices: the
# CPU's own distance from the truth is 0.02 to 0.03. A wrong product gives 0.3 and more.
BOUNDS = {"F32": 2e-3, "F16": 1e-2, "Q8_0": 0.04, "Q4_K_M": 0.06}
# A CPU behind RPC does the same sums, but for matrices that the CPU itself repacks.
BOUNDS_RPC = {**BOUNDS, "F32": 1e-5, "F16": 2e-3}

pytestmark = pytest.mark.plugins

Reports = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What a process says that has one plugin loaded; it runs once for each."""
    folder = tmp_path_factory.mktemp("offloaded")
    for type in BOUNDS:
        path, truth = folder / f"{type}.gguf", folder / f"{type}-truth.gguf"
        pg.convert(NANO, path, type)
        again = pg.QuantizeOptions(allow_requantize=True)
        pg.quantize_model(path, truth, "F32", options=again)

    @functools.cache
    def report(plugin: str) -> dict[str, Any]:
        process = subprocess.run(
            [sys.executable, offloaded.__file__, folder],
            # Vulkan's devices that are no GPUs, as lavapipe's, are used only where they are named.
            env={**os.environ, "PHIGGML_BACKENDS": plugin, "GGML_VK_VISIBLE_DEVICES": "0"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        found: dict[str, Any] = json.loads(process.stdout)
        return found

    return report


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_installed_plugin_fits_and_has_a_device(reports: Reports, plugin: str) -> None:
    installed = {known.name: known for known in installed_plugins()}
    assert plugin in installed, f"phiggml-{plugin} is not installed"
    library = installed[plugin].library
    assert library is not None, installed[plugin].fault
    said = json.loads((library.parent / "plugin.json").read_text("utf-8"))
    assert (said["name"], said["build_id"]) == (plugin, _core.runtime.build_id())
    report = reports(plugin)
    distribution, is_loaded, reason = report["backends"][plugin]
    assert (distribution, is_loaded) == (f"phiggml-{plugin} {pg.__version__}", True)
    # RPC has devices once a server is named to it.
    assert reason == ("it is loaded, and finds no device." if plugin == "rpc" else "")
    assert report["devices"]
    assert [name for name, state in report["backends"].items() if state[1]] == [plugin]


@pytest.mark.parametrize("type", BOUNDS)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_layers_lie_where_they_should(reports: Reports, plugin: str, type: str) -> None:
    found = reports(plugin)["types"][type]
    for name, n_layers in (("none", 0), ("some", offloaded.LAYERS["some"]), ("all", N_LAYER + 1)):
        assert found[name]["elsewhere"] == []
        on_device = found[name]["offloaded"]
        layers = {int(tensor.split(".")[1]) for tensor in on_device if tensor.startswith("blk.")}
        # Upstream counts the output as a layer, the last.
        assert layers == set(range(N_LAYER + 1 - int(n_layers), N_LAYER))
        assert ("output.weight" in on_device) == (n_layers != 0)


@pytest.mark.parametrize("type", BOUNDS)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_logits_are_those_of_the_cpu(reports: Reports, plugin: str, type: str) -> None:
    found = reports(plugin)["types"][type]
    bound = (BOUNDS_RPC if plugin == "rpc" else BOUNDS)[type]
    assert max(found["cpu"]["truth"].values()) <= BOUNDS[type]
    for name in offloaded.LAYERS:
        for reference in ("cpu", "truth"):
            for text, error in found[name][reference].items():
                assert error <= bound, f"{name} layers, {text} text, against {reference}"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_rounded_activations_move_logits_no_further_than_the_cpu_does(
    reports: Reports, plugin: str
) -> None:
    """One that rounds as the CPU does is as far from the truth, one that does not is nearer."""
    for type in ("Q8_0", "Q4_K_M"):
        found = reports(plugin)["types"][type]
        for text, error in found["all"]["truth"].items():
            assert error <= 2 * found["cpu"]["truth"][text], (type, text)
