"""Whole files of all types against llama_model_quantize of the same build."""

from __future__ import annotations

from pathlib import Path

import pytest

from phiggml.errors import InputError
from phiggml.recipe import model_types
from quantization_cases import (
    NEED_IMATRIX,
    Case,
    Upstream,
    call,
    check_case,
    job_of,
    parameters,
    run_jobs,
    shared_folder,
)
from tiny_models import ARCHITECTURES, DTYPES, KINDS, write_source

# Here the rules look at whether there is an imatrix; with all it changes the numbers.
ASK_FOR_IMATRIX = ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS")
NUMBERS_WITH_IMATRIX = ("Q4_1", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ3_S")
NUMBERS_WITHOUT_ANY_USE = ("Q8_0", "MXFP4_MOE", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "BF16")


def quick_cases() -> list[Case]:
    """Every type of every architecture, from F16, BF16 and F32 in turn."""
    cases = []
    for i, architecture in enumerate(ARCHITECTURES):
        kinds = [f"{architecture}-{dtype}" for dtype in DTYPES]
        for j, type in enumerate(model_types()):
            cases.append(Case(kinds[(i + j) % 3], type, type in NEED_IMATRIX))
        for j, type in enumerate((*ASK_FOR_IMATRIX, *NUMBERS_WITH_IMATRIX)):
            cases.append(Case(kinds[(i + j) % 3], type, True))
    cases += [Case("phimoe-BF16", type, True) for type in NUMBERS_WITHOUT_ANY_USE]
    return cases


QUICK = quick_cases()
EVERY = [
    Case(f"{architecture}-{dtype}", type, imatrix)
    for architecture in ARCHITECTURES
    for dtype in DTYPES
    for type in model_types()
    for imatrix in ((True,) if type in NEED_IMATRIX else (False, True))
]
REST = [case for case in EVERY if case not in set(QUICK)]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(shared_folder(tmp_path_factory, "upstream"), QUICK)


@pytest.fixture(scope="module")
def upstream_of_rest(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(shared_folder(tmp_path_factory, "upstream-of-rest"), REST)


@pytest.mark.parametrize("case", parameters(QUICK))
def test_equal_to_upstream(case: Case, upstream: Upstream, tmp_path: Path) -> None:
    check_case(case, upstream, tmp_path)


@pytest.mark.parametrize("case", parameters(REST, slow=True))
def test_all_else_equal_to_upstream(case: Case, upstream_of_rest: Upstream, tmp_path: Path) -> None:
    check_case(case, upstream_of_rest, tmp_path)


def test_every_type_and_dtype_of_every_architecture_is_among_the_cases() -> None:
    assert len(model_types()) == 35
    seen = {(c.kind.partition("-")[0], c.type) for c in QUICK}
    assert seen == {(a, t) for a in ("phi3", "phi2", "phimoe", "llama") for t in model_types()}
    dtypes = {(c.kind.partition("-")[2], c.type) for c in QUICK}
    assert dtypes == {(d, t) for d in DTYPES for t in model_types()}
    assert len(EVERY) == 12 * (2 * 35 - len(NEED_IMATRIX))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("sources") / "fused.gguf", KINDS["fused"])


@pytest.mark.parametrize("type", model_types())
def test_types_that_need_importances(type: str, fused: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    case = Case("fused", type)
    if type not in NEED_IMATRIX:
        call(case, fused, out, dry_run=True)
        return
    with pytest.raises(InputError, match=r"blk\..* needs an importance matrix.*Pass imatrix="):
        call(case, fused, out)
    assert not list(tmp_path.iterdir())


def test_upstream_refuses_what_we_refuse(fused: Path, tmp_path: Path) -> None:
    blocks = write_source(tmp_path / "blocks.gguf.source", KINDS["blocks"])
    refused = [Case("fused", type) for type in sorted(NEED_IMATRIX)]
    jobs = [
        job_of(case, source, tmp_path / f"{case.name}.gguf", tmp_path)
        for source, cases in {
            fused: [*refused, Case("fused", "Q4_0")],
            blocks: [Case("blocks", "Q4_0")],
        }.items()
        for case in cases
    ]
    run_jobs(tmp_path, jobs)
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["fused-Q4_0.gguf"]
