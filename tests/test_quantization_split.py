"""Sources in parts, merged or kept apart, against llama_model_quantize."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from phiggml.quantization import QuantizeOptions, quantize_model
from quantization_cases import Case, job_of, run_jobs, run_once, shared_folder
from tiny_models import ALL_KINDS, importances, write_source

# Name of a source -> its kind, tensors in a part, and whether the first part has none.
SOURCES = {
    "several": ("llama-BF16", 20, False),
    "first-empty": ("phimoe-F16", 40, True),
    "experts": ("experts", 7, False),
    "blocks": ("blocks", 15, False),
}
TYPES = (("Q4_K_M", False), ("Q8_0", False), ("Q4_K_S", True), ("IQ4_XS", True))
CASES = [
    (name, type, imatrix)
    for name in SOURCES
    for type, imatrix in TYPES
    if name != "blocks" or type == "Q8_0"
]


def make_all(folder: Path) -> None:
    jobs = []
    for name, (kind, max_tensors, first_empty) in SOURCES.items():
        source = write_source(
            folder / f"{name}.gguf", ALL_KINDS[kind],
            max_tensors=max_tensors, first_empty=first_empty,
        )  # fmt: skip
        imatrix = folder / f"{name}.npz"
        np.savez(imatrix, **importances(ALL_KINDS[kind]))
        for _, type, has_imatrix in (case for case in CASES if case[0] == name):
            case = Case(kind, type, has_imatrix)
            job = job_of(case, source, folder / f"merged-{name}-{type}.gguf", imatrix)
            jobs.append(job)
            kept = str(folder / f"kept-{name}-{type}")
            jobs.append({**job, "out": kept, "keep_split": True})
    run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_once(shared_folder(tmp_path_factory, "upstream-of-parts"), make_all)


@pytest.mark.parametrize(("name", "type", "imatrix"), CASES)
def test_parts_are_merged(
    name: str, type: str, imatrix: bool, folder: Path, tmp_path: Path
) -> None:
    kind = ALL_KINDS[SOURCES[name][0]]
    (first,) = folder.glob(f"{name}-00001-of-*.gguf")
    given = importances(kind) if imatrix else None
    out = tmp_path / "out.gguf"
    planned = quantize_model(first, out, type, imatrix=given, dry_run=True)
    report = quantize_model(first, out, type, imatrix=given)
    expected = folder / f"merged-{name}-{type}.gguf"
    assert out.read_bytes() == expected.read_bytes()
    assert planned.nbytes == report.nbytes == out.stat().st_size
    assert (report.path, report.paths, planned.paths) == (out, (), ())


@pytest.mark.parametrize(("name", "type", "imatrix"), CASES)
def test_parts_are_kept(name: str, type: str, imatrix: bool, folder: Path, tmp_path: Path) -> None:
    """With the names and bytes of upstream's, whose rules count tensors in the order of parts."""
    (first,) = folder.glob(f"{name}-00001-of-*.gguf")
    given = importances(ALL_KINDS[SOURCES[name][0]]) if imatrix else None
    out, options = tmp_path / f"kept-{name}-{type}.gguf", QuantizeOptions(keep_split=True)
    planned = quantize_model(first, out, type, imatrix=given, options=options, dry_run=True)
    assert not list(tmp_path.iterdir())
    report = quantize_model(first, out, type, imatrix=given, options=options)
    expected = sorted(folder.glob(f"kept-{name}-{type}-*.gguf"))
    assert len(expected) == len(list(folder.glob(f"{name}-0*.gguf")))
    written = sorted(tmp_path.iterdir())
    assert [path.name for path in written] == [path.name for path in expected]
    for ours, theirs in zip(written, expected, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    sizes = [path.stat().st_size for path in written]
    assert planned.nbytes == report.nbytes == sum(sizes)
    assert list(report.paths) == list(planned.paths) == written


@pytest.mark.parametrize(("name", "type", "imatrix"), [c for c in CASES if c[1] == "Q4_K_M"])
def test_new_parts_hold_the_same_tensors(
    name: str, type: str, imatrix: bool, folder: Path, tmp_path: Path
) -> None:
    (first,) = folder.glob(f"{name}-00001-of-*.gguf")
    out, options = tmp_path / "out.gguf", QuantizeOptions(split_max_bytes=20_000)
    planned = quantize_model(first, out, type, options=options, dry_run=True)
    assert not list(tmp_path.iterdir())
    report = quantize_model(first, out, type, options=options)
    written = sorted(tmp_path.iterdir())
    assert len(written) > 2 and list(report.paths) == list(planned.paths) == written
    assert planned.nbytes == report.nbytes == sum(path.stat().st_size for path in written)
    found = [t for path in written for t in gguf.GGUFReader(path).tensors]
    expected = gguf.GGUFReader(folder / f"merged-{name}-{type}.gguf").tensors
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.name, ours.tensor_type) == (theirs.name, theirs.tensor_type)
        np.testing.assert_array_equal(ours.data, theirs.data)
