"""Whole files against llama_model_quantize of the same build, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant import QuantType
from phiggml.quantization import QuantizeOptions, quantize_model
from phiggml.recipe import model_types
from tiny_models import KINDS, importances, write_source

FILE_TYPE = dict(_core.recipe.model_types())
HERE = Path(__file__).parent
NEED_IMATRIX = {
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
}
# Setting up the grids of these takes some seconds on either side.
SLOW = {"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M"}


@dataclass(frozen=True)
class Case:
    """One call of ours, and the same of upstream's."""

    kind: str
    type: str
    imatrix: bool = False
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    overrides: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        imatrix = "-imatrix" if self.imatrix else ""
        return f"{self.kind}-{self.type}{imatrix}{self.label}"


def cases() -> list[Case]:
    every = [Case("fused", type, type in NEED_IMATRIX) for type in model_types()]
    # Here the rules look at whether there is an imatrix.
    other = [Case("fused", type, True) for type in ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M")]
    # Without one, IQ3_XXS is refused except where these tensors get another type.
    gqa = [
        Case("gqa", t, t in NEED_IMATRIX) for t in ("Q2_K", "Q2_K_S", "IQ3_M", "IQ4_XS", "IQ2_M")
    ]
    odd = [Case("odd", t, t in NEED_IMATRIX) for t in ("Q4_K_M", "Q6_K", "IQ2_XS", "TQ1_0", "BF16")]
    tied = [Case("tied", type) for type in ("Q4_K_M", "Q8_0", "TQ2_0", "MXFP4_MOE")]
    experts = [
        Case("experts", t, i) for t in ("Q4_K_M", "Q3_K_M", "MXFP4_MOE") for i in (False, True)
    ]
    experts += [Case("experts", "IQ2_XXS", True), Case("experts", "IQ3_XS", True)]
    options = [
        Case("fused", "Q4_K_M", options=QuantizeOptions(pure=True), label="-pure"),
        Case("fused", "Q4_K_M", options=QuantizeOptions(quantize_output=False), label="-kept"),
        Case("fused", "Q4_K_M", label="-named",
             options=QuantizeOptions(output_type="Q8_0", embedding_type="Q5_1")),
        Case("tied", "Q4_K_M", options=QuantizeOptions(output_type="Q5_K"), label="-named"),
        Case("fused", "Q4_K_M", label="-overrides",
             overrides={"blk.0.ffn_down": "Q8_0", "ffn_down": "IQ4_XS", "attn_qkv": "NVFP4"}),
        Case("blocks", "Q4_0", options=QuantizeOptions(allow_requantize=True)),
        Case("blocks", "Q8_0"),
    ]  # fmt: skip
    return [*every, *other, *gqa, *odd, *tied, *experts, *options]


CASES = cases()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(folder / f"{name}.gguf", kind) for name, kind in KINDS.items()}


def run_upstream(folder: Path, sources: Mapping[str, Path], wanted: list[Case]) -> None:
    jobs = []
    for case in wanted:
        job: dict[str, Any] = {
            "source": str(sources[case.kind]),
            "out": str(folder / f"{case.name}.gguf"),
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
            job["overrides"] = [[e, QuantType(t).id] for e, t in case.overrides.items()]
        if case.imatrix:
            job["imatrix"] = str(folder / f"{case.kind}.npz")
            np.savez(job["imatrix"], **importances(KINDS[case.kind]))
        jobs.append(job)
    library = Path(_core.__file__).parent / "lib" / "libphiggml-llama.so"
    work = folder / "jobs.json"
    work.write_text(json.dumps({"library": str(library), "jobs": jobs}))
    subprocess.run(
        [sys.executable, HERE / "upstream_quantize.py", work],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def upstream(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Path]:
    """What upstream wrote for a case; the slow ones are run only when they are asked for."""
    folders: dict[bool, Path] = {}

    def written(case: Case) -> Path:
        slow = case.type in SLOW
        if slow not in folders:
            folders[slow] = tmp_path_factory.mktemp("upstream")
            run_upstream(folders[slow], sources, [c for c in CASES if (c.type in SLOW) == slow])
        return folders[slow] / f"{case.name}.gguf"

    return written


def call(case: Case, source: Path, out: Path, **more: Any) -> Any:
    imatrix = importances(KINDS[case.kind]) if case.imatrix else None
    return quantize_model(
        source, out, case.type, imatrix=imatrix, overrides=case.overrides,
        options=case.options, threads=2, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.type in SLOW else [])
        for case in CASES
    ],
)
def test_equal_to_upstream(
    case: Case, sources: dict[str, Path], upstream: Callable[[Case], Path], tmp_path: Path
) -> None:
    """Not the tensor data alone: header, order and padding are the same too."""
    out = tmp_path / "ours.gguf"
    report = call(case, sources[case.kind], out)
    assert out.read_bytes() == upstream(case).read_bytes()
    assert report.nbytes == out.stat().st_size
    assert call(case, sources[case.kind], out, dry_run=True).nbytes == report.nbytes


def test_every_type_is_among_the_cases() -> None:
    assert {case.type for case in CASES} == set(model_types())


@pytest.mark.parametrize("type", model_types())
def test_types_that_need_importances(type: str, sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    case = Case("fused", type)
    if type not in NEED_IMATRIX:
        call(case, sources["fused"], out, dry_run=True)
        return
    with pytest.raises(InputError, match=r"blk\..* needs an importance matrix.*Pass imatrix="):
        call(case, sources["fused"], out)
    assert not list(tmp_path.iterdir())


def test_upstream_refuses_what_we_refuse(sources: dict[str, Path], tmp_path: Path) -> None:
    refused = [Case("fused", type) for type in sorted(NEED_IMATRIX)]
    run_upstream(tmp_path, sources, [*refused, Case("fused", "Q4_0"), Case("blocks", "Q4_0")])
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["fused-Q4_0.gguf"]
