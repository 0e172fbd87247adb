"""Importances from a file, with what the output says of them, against llama_model_quantize.

llama-quantize hands it the means of the file and these keys; here the test does, from its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_files import Entry, Floats, dat_end, write_dat, write_gguf
from phiggml.quantization import quantize_model
from quantization_cases import Case, job_of, run_jobs, run_once, shared_folder
from tiny_models import ALL_KINDS, importances, write_source

KINDS = ("phimoe-BF16", "experts", "llama-F16", "phi3-F32")
FORMS = ("gguf", "dat")
TYPES = ("Q4_K_M", "Q2_K_S", "IQ3_XS", "Q4_0", "IQ4_XS")
DATASET, N_CHUNKS = "calibration of all kinds.txt", 37
CASES = [(kind, form, type) for kind in KINDS for form in FORMS for type in TYPES]


def entries_of(kind: str) -> list[Entry]:
    """Sums of tokens, of which some experts have seen none, and others few."""
    random = np.random.default_rng(3)
    entries = []
    for name, values in importances(ALL_KINDS[kind]).items():
        if values.ndim == 1:
            entries.append(Entry(name, values * np.float32(640), (640,)))
            continue
        counts = random.integers(1, 900, len(values)).astype(np.float32)
        counts[[1, 4]] = 0
        entries.append(Entry(name, values * counts[:, None], tuple(map(float, counts))))
    return entries


def imatrix_path(folder: Path, kind: str, form: str) -> Path:
    return folder / f"{kind}-imatrix.{form}"


def make_all(folder: Path) -> None:
    jobs = []
    for kind in KINDS:
        source = write_source(folder / f"{kind}.gguf", ALL_KINDS[kind])
        entries, means = entries_of(kind), folder / f"{kind}.npz"
        np.savez(means, **{entry.name: entry.means for entry in entries})
        end = dat_end(N_CHUNKS, DATASET.encode())
        write_dat(imatrix_path(folder, kind, "dat"), entries, end=end)
        write_gguf(
            imatrix_path(folder, kind, "gguf"), entries, datasets=[DATASET], n_chunks=N_CHUNKS
        )
        for form in FORMS:
            said = [
                ("quantize.imatrix.file", str(imatrix_path(folder, kind, form))[:127]),
                ("quantize.imatrix.dataset", DATASET),
                ("quantize.imatrix.entries_count", len(entries)),
                ("quantize.imatrix.chunks_count", N_CHUNKS),
            ]
            for type in TYPES:
                case = Case(kind, type, True)
                job = job_of(case, source, folder / f"{kind}-{form}-{type}.gguf", means)
                jobs.append({**job, "metadata": said})
    run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_once(shared_folder(tmp_path_factory, "upstream-of-importances"), make_all)


def test_tensors_that_a_matrix_lacks_are_told(tmp_path: Path) -> None:
    """Only such as get blocks, and as llama-imatrix collects importances of."""
    kind = ALL_KINDS["fused"]
    source = write_source(tmp_path / "fused.gguf", kind)
    every = importances(kind)
    usual = {n: a for n, a in every.items() if n not in ("token_embd.weight", "output.weight")}

    def warned(given: dict[str, Floats], type: str = "Q4_K_M", **more: Any) -> tuple[str, ...]:
        out = tmp_path / "out.gguf"
        return quantize_model(source, out, type, imatrix=given, dry_run=True, **more).warnings

    assert warned(every) == warned(usual) == ()
    one = {n: a for n, a in usual.items() if n != "blk.3.ffn_up.weight"}
    (said,) = warned(one)
    assert said.startswith("imatrix: blk.3.ffn_up.weight: it has no importances of them")
    (said,) = warned({n: a for n, a in one.items() if n != "blk.5.ffn_down.weight"})
    assert re.search(r"blk\.[35]\.\S+ and 1 more: it has no importances", said)
    for type in ("F16", "BF16"):  # without blocks
        assert warned(one, type) == ()
    assert warned(one, overrides={r"blk\.3\.ffn_up": "F32"}) == ()
    source = write_source(tmp_path / "blocks.gguf", ALL_KINDS["blocks"])
    assert warned(one, "Q8_0") == ()  # copied


@pytest.mark.parametrize(("kind", "form", "type"), CASES)
def test_equal_to_upstream(kind: str, form: str, type: str, folder: Path, tmp_path: Path) -> None:
    source, out = folder / f"{kind}.gguf", tmp_path / "out.gguf"
    imatrix = imatrix_path(folder, kind, form)
    planned = quantize_model(source, out, type, imatrix=imatrix, threads=2, dry_run=True)
    report = quantize_model(source, out, type, imatrix=imatrix, threads=2)
    assert out.read_bytes() == (folder / f"{kind}-{form}-{type}.gguf").read_bytes()
    assert planned.nbytes == report.nbytes == out.stat().st_size
