"""Calls of quantize_model, and what llama_model_quantize of the same build writes for each.

Upstream runs in processes of its own, once for a test file's quick cases and once for its slow
ones, however many test workers ask for them. The environment may name another build's library:
PHIGGML_UPSTREAM_LIBRARY=build/stock/build/bin/libllama.so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phiggml import _core
from phiggml.quant import QuantType
from phiggml.quantization import QuantizeOptions, quantize_model
from phiggml.report import Report
from tiny_models import ALL_KINDS, importances, write_source

FILE_TYPE = dict(_core.recipe.model_types())
SCRIPT = Path(__file__).parent / "upstream_quantize.py"
NEED_IMATRIX = {
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
}
# Tensors of IQ1_S, IQ1_M and IQ2_S: setting up their grids takes some seconds on either side.
SLOW = {"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M"}
# Of these upstream sets up grids while another process of it does the rest.
GRIDS = {*SLOW, "IQ2_XXS", "IQ2_XS"}
LONGEST = 300  # seconds


@dataclass(frozen=True)
class Case:
    """One call of ours, and the same of upstream's.

    ``source`` is the case whose output is quantized again; None: a file of the kind. ``apart`` is
    what the quick suite leaves out.
    """

    kind: str
    type: str
    imatrix: bool = False
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    overrides: tuple[tuple[str, str], ...] = ()
    label: str = ""
    source: Case | None = None
    apart: bool = False

    @property
    def name(self) -> str:
        again = f"{self.source.name}-to-" if self.source else f"{self.kind}-"
        return f"{again}{self.type}{'-imatrix' if self.imatrix else ''}{self.label}"

    @property
    def slow(self) -> bool:
        # Of a model whose queries are a tensor of their own, IQ3_XXS makes IQ2_S.
        queries = "attn_q" in ALL_KINDS[self.kind].shapes and self.type == "IQ3_XXS"
        own = self.apart or self.type in SLOW or queries
        return own or (self.source is not None and self.source.slow)


def parameters(cases: Iterable[Case], *, slow: bool = False) -> list[Any]:
    """For pytest.mark.parametrize."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow or case.slow else [])
        for case in cases
    ]


def job_of(case: Case, source: Path, out: Path, imatrix: Path) -> dict[str, Any]:
    """What upstream_quantize.py is asked for."""
    job: dict[str, Any] = {
        "source": str(source),
        "out": str(out),
        "file_type": FILE_TYPE[case.type],
        "pure": case.options.pure,
        "quantize_output": case.options.quantize_output,
        "allow_requantize": case.options.allow_requantize,
    }
    for option in ("output_type", "embedding_type"):
        name = getattr(case.options, option)
        if name is not None:
            job[option] = QuantType(name).id
    if case.overrides:
        job["overrides"] = [[e, QuantType(t).id] for e, t in case.overrides]
    if case.imatrix:
        job["imatrix"] = str(imatrix)
    return job


def run_jobs(folder: Path, *queues: list[dict[str, Any]]) -> None:
    """Has upstream carry them out: a process of one thread for each queue."""
    own = Path(_core.__file__).parent / "lib" / "libphiggml-llama.so"
    library = str(Path(os.environ.get("PHIGGML_UPSTREAM_LIBRARY", own)).absolute())
    with ExitStack() as files:
        running = []
        for i, jobs in enumerate(queues):
            work = folder / f"jobs-{i}.json"
            work.write_text(json.dumps({"library": library, "jobs": jobs}))
            said = files.enter_context((folder / f"upstream-{i}.log").open("w+b"))
            command = [sys.executable, str(SCRIPT), str(work)]
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            running.append((files.enter_context(process), said))
            files.callback(process.kill)
        for process, said in running:
            code = process.wait(timeout=LONGEST)
            said.seek(0)
            assert code == 0, said.read().decode(errors="replace")[-4000:]


def run_once(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Returns a folder that the first worker to ask for it makes and fills; others wait."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        end = time.monotonic() + LONGEST
        while not (folder / "done").exists():
            assert not (folder / "failed").exists(), f"upstream failed: {folder}"
            assert time.monotonic() < end, f"upstream takes too long: {folder}"
            time.sleep(0.05)
        return folder
    try:
        fill(folder)
        (folder / "done").touch()
    except BaseException:
        (folder / "failed").touch()
        raise
    return folder


class Upstream:
    """Sources, and what upstream makes of them."""

    def __init__(self, folder: Path, cases: Iterable[Case]) -> None:
        self._folder = folder
        self._cases = list(cases)
        assert len({case.name for case in self._cases}) == len(self._cases)

    def source(self, case: Case) -> Path:
        if case.source is not None:
            return _out(self._filled(case), case.source)
        return self._filled(case) / f"{case.kind}.gguf"

    def written(self, case: Case) -> Path:
        return _out(self._filled(case), case)

    def _filled(self, case: Case) -> Path:
        """Where a case's files are."""
        cases = [c for c in self._cases if c.slow == case.slow]
        folder = self._folder / ("slow" if case.slow else "quick")
        return run_once(folder, lambda made: self._fill(made, cases))

    @staticmethod
    def _fill(folder: Path, cases: list[Case]) -> None:
        for name in {case.kind for case in cases}:
            write_source(folder / f"{name}.gguf", ALL_KINDS[name])
            np.savez(folder / f"{name}.npz", **importances(ALL_KINDS[name]))
        queues: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        # A queue's jobs are done in turn, so what is quantized again is there.
        sources = dict.fromkeys(case.source for case in cases if case.source)
        for case in [*sources, *cases]:
            source = _out(folder, case.source) if case.source else folder / f"{case.kind}.gguf"
            job = job_of(case, source, _out(folder, case), folder / f"{case.kind}.npz")
            queues[(case.source or case).type in GRIDS].append(job)
        run_jobs(folder, *queues.values())
        for case in cases:
            assert _out(folder, case).exists(), f"upstream refuses {case.name}"


def _out(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}-upstream.gguf"


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all test workers of a run have in common."""
    base = factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name


def call(case: Case, source: Path, out: Path, **more: Any) -> Report:
    imatrix = importances(ALL_KINDS[case.kind]) if case.imatrix else None
    return quantize_model(
        source, out, case.type, imatrix=imatrix, overrides=dict(case.overrides),
        options=case.options, threads=2, **more,
    )  # fmt: skip


def check_case(case: Case, upstream: Upstream, folder: Path) -> None:
    """Not the tensor data alone: header, order and padding are the same too.

    The dry run, which comes first, knows the size and writes nothing.
    """
    source, out = upstream.source(case), folder / "ours.gguf"
    planned = call(case, source, out, dry_run=True)
    assert not list(folder.iterdir()) and not planned.written
    report = call(case, source, out)
    expected = upstream.written(case)
    assert out.read_bytes() == expected.read_bytes(), expected
    assert list(folder.iterdir()) == [out]
    assert planned.nbytes == report.nbytes == out.stat().st_size
    assert planned.tensors == report.tensors
