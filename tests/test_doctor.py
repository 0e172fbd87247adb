"""phiggml doctor: what it finds here, what it says of faults, and how that looks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import phiggml as pg
from command_line import Out, Terminal, complaint, phiggml
from made_up_plugins import described, install
from phiggml import _core, cli_doctor, cli_self_test
from phiggml.cli_self_test import CheckError

_UNSET = "Unset it to let the best one be chosen."
CHECKS = ("backends", "processor", "arrays", "products", "demo model")


def report(**environment: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "phiggml", "doctor", "--json"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def found(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["check"]: check for check in document["checks"]}


def test_it_finds_this_installation_well(capsys: Out) -> None:
    code = phiggml("doctor")
    text = capsys.readouterr().out
    for check in CHECKS:
        assert re.search(rf"^{check} +ok: ", text, re.MULTILINE), text
    assert code == (1 if "failed:" in text else 0)
    assert f"numpy {np.__version__}, jinja2 " in text
    for device in pg.devices():
        assert re.search(rf"{device.name} \({device.kind}\): .*, \d\S* [GM]B", text)


def test_it_reports_for_machines(capsys: Out) -> None:
    code = phiggml("doctor", "--json")
    document = json.loads(capsys.readouterr().out)
    assert set(CHECKS) <= found(document).keys()
    assert code == (0 if all(check["ok"] for check in document["checks"]) else 1)
    listed = [(device["name"], device["memory_total"]) for device in document["devices"]]
    assert listed == [(device.name, device.memory_total) for device in pg.devices()]
    facts = {fact["label"]: fact["value"] for fact in document["facts"]}
    assert _core.runtime.build_id() in facts["phiggml"]
    assert Path(_core.runtime.cpu_module()).parent == Path(facts["libraries"])


def test_it_says_what_fails(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_x: object, _type: object) -> NoReturn:
        raise pg.DeviceError("quantize: the cat sat on it.")

    monkeypatch.setattr(pg, "quantize", lost)
    assert phiggml("doctor") == 1
    text = capsys.readouterr().out
    assert re.search(r"^arrays +failed: quantize: the cat sat on it\.\n +Reinstall", text, re.M)
    assert re.search(r"^demo model +ok: ", text, re.M)


# the processor ------------------------------------------------------------------------------------


def processor(
    monkeypatch: pytest.MonkeyPatch, flags: str, features: str, modules: int
) -> cli_doctor._Finding:
    monkeypatch.setattr(cli_doctor, "_processor_flags", lambda: frozenset(flags.split()))
    used = [(name, "1") for name in features.split()]
    monkeypatch.setattr("phiggml._core.runtime.cpu_features", lambda: [*used, ("AMX_INT8", "0")])
    monkeypatch.setattr(cli_doctor, "_cpu_modules", lambda: [Path("x.so")] * modules)
    return cli_doctor._found("processor", cli_doctor._check_processor, "Rebuild.")


def test_a_module_for_another_processor_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = processor(monkeypatch, "avx2 amx_int8", "AVX2", 1)
    said = "the CPU has AMX_INT8, which the CPU module does not use."
    assert (finding.ok, finding.detail, finding.remedy) == (False, said, "Rebuild.")


def test_the_best_of_many_modules_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIGGML_CPU_VARIANT", "")
    finding = processor(monkeypatch, "avx2 sve", "AVX2", 14)
    assert finding.ok
    assert "the best of 14 for this CPU: AVX2; not in use: SVE" in finding.detail
    monkeypatch.setenv("PHIGGML_CPU_VARIANT", "haswell")
    finding = processor(monkeypatch, "avx2", "AVX2", 14)
    assert finding.detail.endswith("named by PHIGGML_CPU_VARIANT: AVX2")


def test_what_longer_vectors_do_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor(monkeypatch, "avx_vnni avx512_vnni", "AVX512_VNNI", 1).ok
    assert not processor(monkeypatch, "avx_vnni", "AVX2", 1).ok


# plugins and modules ------------------------------------------------------------------------------


def made_up(folder: Path) -> Path:
    broken = install(folder, "broken", described("libggml-broken.so"))
    (broken / "libggml-broken.so").write_bytes(b"no library" * 100)
    install(folder, "stale", described("libggml-stale.so", "0123456789ab"))
    install(folder, "unwanted", described("libggml-unwanted.so"))
    return folder


def test_it_says_what_became_of_each_plugin(tmp_path: Path) -> None:
    code, document = report(
        PYTHONPATH=str(made_up(tmp_path)), PHIGGML_BACKENDS="broken,stale,none-such"
    )
    checks = found(document)
    assert code == 1
    assert all(checks[name]["ok"] for name in ("backends", "arrays", "products", "demo model"))
    expected = {
        "broken": (False, "phiggml-broken 0.1.0: its module does not load: "),
        "stale": (False, "phiggml-stale 0.1.0: it was built for another phiggml (build 0123456"),
        "none-such": (False, "PHIGGML_BACKENDS names it, and it is not installed: backends "),
        "unwanted": (True, "phiggml-unwanted 0.1.0: PHIGGML_BACKENDS leaves it out."),
    }
    for name, (ok, words) in expected.items():
        assert (checks[name]["ok"], words in checks[name]["detail"]) == (ok, True), checks[name]
    facts = [(fact["label"], fact["value"]) for fact in document["facts"]]
    assert ("environment", "PHIGGML_BACKENDS=broken,stale,none-such") in facts


BUILT_IN = """
import sys
from pathlib import Path
from phiggml import cli, cli_doctor, runtime
folder = Path(sys.argv[1])
runtime.library_folder = cli_doctor.library_folder = lambda: folder
sys.exit(cli.main(["doctor", "--json"]))
"""


def test_it_says_which_module_of_a_build_does_not_load(tmp_path: Path) -> None:
    for file in Path(_core.runtime.cpu_module()).parent.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "libggml-broken.so").write_bytes(b"no library" * 100)
    (tmp_path / "libnowhere.so").symlink_to("nowhere")
    done = subprocess.run(
        [sys.executable, "-c", BUILT_IN, tmp_path], capture_output=True, text=True, timeout=120
    )
    checks = found(json.loads(done.stdout))
    assert (done.returncode, done.stderr) == (1, "")
    assert checks["broken"]["detail"].startswith("libggml-broken.so does not load: ")
    assert checks["broken"]["remedy"].startswith("Install what it names")
    assert checks["demo model"]["ok"] and "cpu" not in checks


def test_a_terminal_of_80_columns_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    phiggml("doctor")
    lines = terminal.getvalue().splitlines()
    # A path is not broken: it is there to be copied.
    assert all(len(line) <= 80 or "/" in line for line in lines), lines
    assert all(line[12] == " " and line[13] != " " for line in lines), lines


def test_a_cpu_variant_that_is_no_text_is_a_finding() -> None:
    code, document = report(PHIGGML_CPU_VARIANT="\udcff")
    assert code == 1
    checks = found(document)
    assert "PHIGGML_CPU_VARIANT=\\udcff: no such CPU" in checks["backends"]["detail"]
    # What is not set need not be installed anew.
    assert {checks[name]["remedy"] for name in CHECKS} == {_UNSET}
    assert not any(_UNSET in checks[name]["detail"] for name in CHECKS)


# devices ------------------------------------------------------------------------------------------


def test_an_unknown_type_is_told_at_once(capsys: Out) -> None:
    assert phiggml("doctor", "--types", "Q4_K_M,Q9_X") == 3
    assert "'Q9_X' is no whole-model type" in complaint(capsys)


@pytest.mark.parametrize(("value", "ok"), [(1.05, True), (2.0, False), (np.nan, False)])
def test_a_device_that_computes_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, value: float, ok: bool
) -> None:
    """The device itself is not here: what it would answer is."""

    def logits(_type: str, device: str | None) -> np.ndarray[Any, Any]:
        return np.full(8, 1.0 if device is None else value, np.float32)

    def placed(types: list[str], name: str) -> dict[str, str]:
        return {type: "CPU" if type == "TQ1_0" else name for type in types[:16]}

    monkeypatch.setattr(cli_self_test, "_logits", logits)
    monkeypatch.setattr(cli_self_test, "_placed", placed)
    if not ok:
        with pytest.raises(CheckError, match="its logits of a Q8_0 model differ from the CPU's by"):
            cli_self_test.check_device("GPU0", ["Q8_0"])
        return
    said = cli_self_test.check_device("GPU0", ["Q8_0", "Q4_K_M"])
    assert "Q8_0 by 0.0500, Q4_K_M by 0.0500; it takes F16 Q4_0 " in said
    assert said.endswith("; left to the CPU: TQ1_0")


def test_what_has_no_memory_of_its_own_claims_none(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    blas = pg.Device("BLAS", "OpenBLAS", "BLAS", "accel", 0, 0)
    monkeypatch.setattr(pg, "devices", lambda: [blas])
    assert phiggml("doctor") == 0
    text = capsys.readouterr().out
    assert re.search(r"BLAS \(accel\): OpenBLAS$", text, re.MULTILINE)
    assert phiggml("devices") == 0
    assert re.search(r"^BLAS +accel +BLAS +- +- +OpenBLAS$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.plugins
def test_it_computes_on_each_device() -> None:
    _, document = report(GGML_VK_VISIBLE_DEVICES="0")
    checks = found(document)
    assert checks["vulkan"]["ok"]
    assert checks["Vulkan0"]["ok"], checks["Vulkan0"]
    assert " Q4_K " in checks["Vulkan0"]["detail"].partition("it takes ")[2]
    [device] = [device for device in document["devices"] if device["name"] == "Vulkan0"]
    assert device["memory_total"] >= device["memory_free"] > 0
