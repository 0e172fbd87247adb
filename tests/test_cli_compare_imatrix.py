"""phiggml compare --imatrix: importances by llama-imatrix, and as a vector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from command_line import Out, complaint, phiggml
from compared_files import (
    Array,
    document,
    figures,
    gguf_file,
    model_file,
    normal,
    require_figures,
    types,
)
from imatrix_files import Entry, dat_end, write_dat, write_gguf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path)


def weighted(x: Array, type: str, importances: Array) -> npt.NDArray[np.float64]:
    blocks = pg.quantize(x, type, imatrix=importances)
    kind = gguf.GGMLQuantizationType[type]
    return gguf.quants.dequantize(blocks.data, kind).astype(np.float64)


def sums(*shape: int, seed: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.1, 9, shape).astype(np.float32)


def require_nrmse(found: dict[str, Any], matrices: Array, importances: Iterable[Array]) -> None:
    """The nrmse of Q4_K over matrices that are each quantized with their own importances."""
    pairs = zip(matrices, importances, strict=True)
    squares = [figures(m, weighted(m, "Q4_K", w))["nrmse"] ** 2 for m, w in pairs]
    require_figures(found["types"][0], {"nrmse": float(np.sqrt(np.mean(squares)))})


def imatrix_file(path: Path, entries: dict[str, tuple[Array, Any]]) -> Path:
    tensors = {}
    for name, (values, counts) in entries.items():
        tensors[f"{name}.in_sum2"] = values
        tensors[f"{name}.counts"] = np.array(counts, np.float32).reshape(-1, 1)
    return gguf_file(path, tensors, general__type="imatrix")


def test_importances_of_a_model(model: Path, tmp_path: Path, capsys: Out) -> None:
    large = sums(1, 512)
    imatrix = imatrix_file(tmp_path / "i.gguf", {"large": (large, [7]), "elsewhere": (large, [7])})
    found = document(capsys, model, "--imatrix", imatrix, "--types", "Q4_K,IQ2_XS")
    for row in found["types"]:
        after = weighted(normal(6, 512), row["type"], large[0] / np.float32(7))
        require_figures(row, figures(normal(6, 512), after))
    assert found["imatrix"] == str(imatrix)
    assert found["left_out"]["small"] == "without importances"
    assert types(document(capsys, model, "--imatrix", imatrix)) == set(map(str, pg.quant_types()))
    assert phiggml("compare", model, "--imatrix", imatrix, "--types", "Q4_0") == 0
    assert f"importances: {imatrix}" in capsys.readouterr().out


def test_importances_of_experts(tmp_path: Path, capsys: Out) -> None:
    """Each matrix has its own; one that nothing went through is weighted equally."""
    x, values = normal(3, 4, 256), sums(3, 256)
    path = gguf_file(tmp_path / "x.gguf", {"experts": x})
    imatrix = imatrix_file(tmp_path / "i.gguf", {"experts": (values, [5, 0, 2])})
    found = document(capsys, path, "--imatrix", imatrix, "--types", "Q4_K")
    own = [values[0] / np.float32(5), np.ones(256, np.float32), values[2] / np.float32(2)]
    require_nrmse(found, x, own)
    shared = imatrix_file(tmp_path / "s.gguf", {"experts": (values[:1], [5])})
    found = document(capsys, path, "--imatrix", shared, "--types", "Q4_K")
    require_figures(found["types"][0], figures(x, weighted(x, "Q4_K", own[0])))


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_importances_as_llama_imatrix_writes_them(form: str, tmp_path: Path, capsys: Out) -> None:
    """Both forms say of a matrix, and of experts, what the vectors of their means would."""
    x, experts = normal(6, 512), normal(3, 4, 256)
    path = gguf_file(tmp_path / "x.gguf", {"large": x, "experts": experts})
    entries = [Entry("large", sums(512), (7,)), Entry("experts", sums(3, 256), (5, 0, 2))]
    imatrix = tmp_path / f"i.{form}"
    if form == "gguf":
        write_gguf(imatrix, entries)
    else:
        write_dat(imatrix, entries, n_calls=4, end=dat_end(1, b"set"))
    found = document(capsys, path, "--imatrix", imatrix, "--types", "Q4_K", "--tensor", "large")
    require_figures(found["types"][0], figures(x, weighted(x, "Q4_K", entries[0].means[0])))
    found = document(capsys, path, "--imatrix", imatrix, "--types", "Q4_K", "--tensor", "experts")
    require_nrmse(found, experts, entries[1].means)


def test_importances_of_a_vector(model: Path, tmp_path: Path, capsys: Out) -> None:
    np.save(tmp_path / "i.npy", sums(512))
    line = (model, "--imatrix", tmp_path / "i.npy", "--types", "IQ2_XXS")
    found = document(capsys, *line, "--tensor", "large")
    after = weighted(normal(6, 512), "IQ2_XXS", sums(512))
    require_figures(found["types"][0], figures(normal(6, 512), after))
    assert phiggml("compare", *line) == 3
    assert "--tensor" in complaint(capsys)


BAD_IMATRICES: dict[str, tuple[Any, int, str]] = {
    "of another model": ({"small.in_sum2": sums(1, 512), "small.counts": sums(1, 1)}, 3, "fit"),
    "of no tensor here": ({"none.in_sum2": sums(1, 256), "none.counts": sums(1, 1)}, 3, "nothing"),
    "negative": ({"small.in_sum2": -sums(1, 256), "small.counts": sums(1, 1)}, 3, "negative"),
    "NaN counts": (
        {"small.in_sum2": sums(1, 256), "small.counts": sums(1, 1) * np.nan}, 3, "finite",
    ),
    "matrices of a matrix": (
        {"small.in_sum2": sums(2, 256), "small.counts": sums(2, 1)}, 3, "[2, 256]",
    ),
    "no counts": ({"small.in_sum2": sums(1, 256)}, 4, "counts"),
    "too few counts": ({"small.in_sum2": sums(2, 256), "small.counts": sums(1, 1)}, 4, "counts"),
    "halves": (
        {"small.in_sum2": sums(1, 256).astype(np.float16), "small.counts": sums(1, 1)}, 4, "float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMATRICES)
def test_importances_that_cannot_be(case: str, model: Path, tmp_path: Path, capsys: Out) -> None:
    tensors, code, says = BAD_IMATRICES[case]
    if says == "fit":
        says = "float32[1, 512], for a tensor of shape [2, 256]"
    path = gguf_file(tmp_path / "i.gguf", tensors, general__type="imatrix")
    assert phiggml("compare", model, "--imatrix", path, "--types", "Q4_K") == code
    assert says in complaint(capsys)


def test_files_that_hold_no_importances(model: Path, tmp_path: Path, capsys: Out) -> None:
    np.save(tmp_path / "wide.npy", sums(1, 256))
    np.save(tmp_path / "whole.npy", np.ones(256, np.int64))
    (tmp_path / "old.dat").write_bytes(bytes(100))
    for name, code, says in (
        (model, 4, "general.type"),
        (tmp_path / "wide.npy", 3, "float32[n]"),
        (tmp_path / "whole.npy", 3, "int64[256]"),
        (tmp_path / "old.dat", 4, "old.dat"),
        (tmp_path / "none.gguf", 8, "none.gguf"),
    ):
        assert phiggml("compare", model, "--imatrix", name, "--tensor", "small") == code
        assert says in complaint(capsys)
