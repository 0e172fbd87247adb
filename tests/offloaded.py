"""Files run with layers on the device of one plugin, and on the CPU: as a program.

    PHIGGML_BACKENDS=NAME python offloaded.py FOLDER

FOLDER holds TYPE.gguf and, of the same weights in float32, TYPE-truth.gguf. Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
import rpc_device
from phiggml.runtime import load_backends

LAYERS = {"none": 0, "some": 2, "all": "all"}
# Fewer than 32, from which on upstream has a device compute what lies on the CPU, too.
N_SHORT = 24
N_LONG = 64

Logits = npt.NDArray[np.float32]


def evaluated(path: Path, **settings: Any) -> tuple[dict[str, Logits], dict[str, str]]:
    """Logits of a short and a long text and of single tokens, and where tensors lie."""
    tokens = np.random.default_rng(0).integers(3, 900, N_LONG)
    with pg.Model(path, **settings) as model, pg.Session(model, n_ctx=128, threads=1) as session:
        found = {"long": session.eval(tokens, logits="all")}
        session.reset()
        found["short"] = session.eval(tokens[:N_SHORT], logits="all")
        rest = [session.eval(tokens[i : i + 1]) for i in range(N_SHORT, N_SHORT + 4)]
        found["single"] = np.stack(rest)
        return found, dict(model.placement)


def distance(found: dict[str, Logits], wanted: dict[str, Logits]) -> dict[str, float]:
    """Relative errors (nrmse)."""
    assert all(np.isfinite(logits).all() for logits in found.values())
    return {
        text: float(np.linalg.norm(found[text] - wanted[text]) / np.linalg.norm(wanted[text]))
        for text in found
    }


def compared(folder: Path, type: str, device: str) -> dict[str, Any]:
    """One file on the device, against itself on the CPU and against the truth."""
    path = folder / f"{type}.gguf"
    truth, _ = evaluated(folder / f"{type}-truth.gguf", devices=[])
    on_cpu, _ = evaluated(path, devices=[])
    report: dict[str, Any] = {"cpu": {"truth": distance(on_cpu, truth)}}
    for name, n_gpu_layers in LAYERS.items():
        found, placement = evaluated(path, devices=[device], n_gpu_layers=n_gpu_layers)
        report[name] = {
            "cpu": distance(found, on_cpu),
            "truth": distance(found, truth),
            "offloaded": sorted(tensor for tensor, at in placement.items() if at == device),
            "elsewhere": sorted({at for at in placement.values() if at not in (device, "CPU")}),
        }
    return report


def main(folder: Path) -> None:
    backends = load_backends()
    report: dict[str, Any] = {
        "backends": {b.name: [b.distribution, b.loaded, b.reason] for b in backends}
    }
    with contextlib.ExitStack() as stack:
        if report["backends"].get("rpc", ["", False, ""])[1]:
            rpc_device.connect(stack.enter_context(rpc_device.served()))
        devices = [device for device in pg.devices() if device.backend != "CPU"]
        report["devices"] = [[device.name, device.backend, device.kind] for device in devices]
        files = sorted(folder.glob("*-truth.gguf"))
        types = [path.name.removesuffix("-truth.gguf") for path in files]
        report["types"] = {
            type: compared(folder, type, device.name) for device in devices[:1] for type in types
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
