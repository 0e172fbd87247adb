"""Another package that carries a llama.cpp, in the same process: each keeps to its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import coexisting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, asks glibc's loader")

ORDERS = ("phiggml", "xllamacpp"), ("xllamacpp", "phiggml")
BOUND = re.compile(r"binding file (\S+) \[\d+\] to (\S+) \[\d+\]: \w+ symbol `([^']+)'")
# Of libstdc++'s templates: constants that all copies have alike.
STANDARD = re.compile(r"_Z(TV|TI|TS|GV)?(Z)?N?K?(St|10__cxxabiv1|9__gnu_cxx)")

# Theirs for the whole process, before phiggml is imported and after.
GLOBAL = """
import ctypes, importlib.util, sys
[folder] = importlib.util.find_spec("xllamacpp").submodule_search_locations
def load_theirs():
    ctypes.CDLL(folder + "/xllamacpp.abi3.so", mode=ctypes.RTLD_GLOBAL)
if sys.argv[1] == "before":
    load_theirs()
try:
    import phiggml as pg
    load_theirs()
    pg.devices()
except (ImportError, RuntimeError) as error:
    print(type(error).__name__, error)
"""


@dataclass(frozen=True)
class Run:
    """What a process said, and what its loader bound to what."""

    report: dict[str, Any]
    errors: str
    bindings: list[tuple[str, str, str]]


Runner = Callable[..., Run]


@pytest.fixture(scope="module")
def run(nano_f16: Path, nano_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs steps of coexisting.py, once for each sequence of them."""
    done: dict[tuple[str, ...], Run] = {}

    def run_once(*steps: str) -> Run:
        if steps not in done:
            done[steps] = _run(steps, nano_f16, nano_q4, tmp_path_factory.mktemp("loader"))
        return done[steps]

    return run_once


def _run(steps: tuple[str, ...], ours: Path, theirs: Path, folder: Path) -> Run:
    loader = {"LD_DEBUG": "bindings", "LD_BIND_NOW": "1", "LD_DEBUG_OUTPUT": str(folder / "said")}
    process = subprocess.run(
        [sys.executable, coexisting.__file__, ours, theirs, *steps],
        env={**os.environ, **loader, "PHIGGML_BACKENDS": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    said = "".join(path.read_text("utf-8", "replace") for path in folder.iterdir())
    bindings = [(m[1], m[2], m[3]) for m in BOUND.finditer(said)]
    return Run(json.loads(process.stdout), process.stderr, bindings)


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_both_answer_as_they_do_alone(run: Runner, order: tuple[str, str]) -> None:
    alone = {name: run(name).report["answers"] for name in order}
    for [answer] in alone.values():
        assert len(answer["logits"]) == 1 and answer["text"].strip()
    together = run(*order, *order).report["answers"]
    # The second time round, each has what the other made beside it, and its own of before.
    assert together == [alone[name][0] for name in (*order, *order)]


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_each_has_libraries_and_logs_of_its_own(run: Runner, order: tuple[str, str]) -> None:
    found = run(*order, *order)
    libraries = found.report["libraries"]
    names = {Path(path).name for path in libraries["phiggml"]}
    assert {"libphiggml-ggml-base.so", "libphiggml-llama.so"} <= names
    assert libraries["xllamacpp"]
    for name, file in found.report["log_callbacks"].items():
        assert file in libraries[name]
    # Their file is of 4 bits, and they log to stderr; ours is of 16.
    assert {line.split("=")[1].strip() for line in _file_types(found.report["logged"])} == {"F16"}
    theirs = _file_types(found.errors.splitlines())
    assert {line.split("=")[1].strip() for line in theirs} == {"Q4_K - Medium"}


def _file_types(lines: list[str]) -> list[str]:
    return [line for line in lines if "print_info: file type" in line]


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_no_symbol_of_one_is_bound_to_the_other(run: Runner, order: tuple[str, str]) -> None:
    found = run(*order, *order)
    owner = {path: name for name, paths in found.report["libraries"].items() for path in paths}
    pairs = [(owner.get(a, ""), owner.get(b, ""), symbol) for a, b, symbol in found.bindings]
    within = {a for a, b, _ in pairs if a == b and a}
    assert within == set(order)  # the loader's words are understood
    across = {symbol for a, b, symbol in pairs if a and b and a != b}
    assert {symbol for symbol in across if not STANDARD.match(symbol)} == set()


@pytest.mark.parametrize(
    ("when", "error"), [("before", "ImportError import: "), ("after", "DeviceError load: ")]
)
def test_a_ggml_of_the_whole_process_is_refused(when: str, error: str) -> None:
    # Symbols of the whole process come before a library's own: ours would run in theirs.
    process = subprocess.run(
        [sys.executable, "-c", GLOBAL, when],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(error)
    assert process.stdout.rstrip().endswith("Load it with RTLD_LOCAL, which is the default.")
    assert "xllamacpp.abi3.so" in process.stdout
