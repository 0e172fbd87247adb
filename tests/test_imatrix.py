"""Importances from files of both forms, fitted to a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_files import Entry, Floats, dat_end, sums, write_dat, write_gguf
from phiggml.errors import FormatError, InputError
from phiggml.gguf_edit import edit_gguf
from phiggml.gguf_value import GGUFValue
from phiggml.imatrix import Imatrix, fitted, read_imatrix
from phiggml.quantization import quantize_model
from quantization_cases import FILE_TYPE, run_jobs
from tiny_models import ARCHITECTURES, importances, write_source

UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down_exps.weight"
EMBEDDING, LAYER_EMBEDDING = "token_embd.weight", "per_layer_token_embd.weight"
MODEL = [
    (UP, (32, 256)),
    (DOWN, (8, 5, 64)),
    (EMBEDDING, (40, 256)),
    (LAYER_EMBEDDING, (40, 256)),
    ("output_norm.weight", (256,)),
]
# What an expert without data was summed up to does not matter: its columns count the same.
EXPERTS = Entry(DOWN, sums(8, 64), (7, 0, 3, 2**20 + 1, 0, 0, 0, 1))
ENTRIES = [Entry(UP, sums(256, seed=1), (640,)), EXPERTS]


def same(found: Any, expected: Floats) -> None:
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_the_newer_form(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "i.gguf", ENTRIES, datasets=["a.txt", "b.txt"], n_chunks=7)
    found = read_imatrix(path)
    assert list(found.importances) == [UP, DOWN]
    for entry in ENTRIES:
        same(found.importances[entry.name], entry.means)
        with pytest.raises(ValueError, match="read-only"):
            found.importances[entry.name][0] = 0
    assert found.unseen == {DOWN: (1, 4, 5, 6)}
    assert (found.datasets, found.n_chunks, found.n_entries) == (("a.txt", "b.txt"), 7, 2)
    assert (found.path, found.file) == (path, str(path))


@pytest.mark.parametrize("n_calls", [0, 1, 2, 3, 2**24 + 1])
@pytest.mark.parametrize(
    ("end", "n_chunks", "datasets"),
    [
        (b"", 0, ()),
        (dat_end(11, b"")[:4], 11, ()),
        (dat_end(11, b""), 11, ()),
        (dat_end(0, b"wiki\xff.txt"), 0, ("wiki\udcff.txt",)),
        (dat_end(2**31 - 1, "é".encode()), 2**31 - 1, ("é",)),
    ],
)
def test_the_older_form(
    n_calls: int, end: bytes, n_chunks: int, datasets: tuple[str, ...], tmp_path: Path
) -> None:
    """Its values have been multiplied by the number of calls, and rounded."""
    path = write_dat(tmp_path / "i.gguf", ENTRIES, n_calls=n_calls, end=end)  # no name decides
    found = read_imatrix(path)
    assert list(found.importances) == [UP, DOWN]
    for entry in ENTRIES:
        calls = np.float32(n_calls or 1)
        same(found.importances[entry.name], (entry.means * calls / calls).reshape(1, -1))
    assert (found.datasets, found.n_chunks, found.unseen) == (datasets, n_chunks, {})


def test_counts_are_rounded_as_the_stock_tool_does(tmp_path: Path) -> None:
    counts = (0.4, 0.5, 1.5, 2.5, 2**24, 3e9)
    path = write_gguf(tmp_path / "i.gguf", [Entry("x", sums(6, 4), counts)])
    expected = Entry("x", sums(6, 4), (0, 1, 2, 3, 2**24, 3e9)).means
    same(read_imatrix(path).importances["x"], expected)


def test_files_that_say_less(tmp_path: Path) -> None:
    """Keys that nothing is computed from may be absent."""
    path = write_gguf(tmp_path / "a.gguf", ENTRIES, datasets=None, n_chunks=None)
    found = read_imatrix(path)
    assert (found.datasets, found.n_chunks) == ((), 0)
    assert read_imatrix(write_gguf(tmp_path / "b.gguf", ENTRIES, type=None)).n_entries == 2
    with pytest.raises(FormatError, match=r"general\.type") as raised:
        read_imatrix(write_gguf(tmp_path / "c.gguf", ENTRIES, n_chunks=None, type=None))
    assert raised.value.path == str(tmp_path / "c.gguf")


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_fitted_from_a_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"i.{form}"
    if form == "gguf":
        write_gguf(path, ENTRIES)
    else:
        write_dat(path, ENTRIES, n_calls=4, end=dat_end(5, b"calibration.txt"))
    found = fitted(path, MODEL)
    assert found is not None and list(found.importances) == [UP, DOWN]
    for entry in ENTRIES:
        same(found.importances[entry.name], entry.means)
        assert found.importances[entry.name].flags.c_contiguous
    assert found.metadata == {
        "quantize.imatrix.file": GGUFValue(str(path), "STRING"),
        "quantize.imatrix.dataset": GGUFValue("calibration.txt", "STRING"),
        "quantize.imatrix.entries_count": GGUFValue(2, "UINT32"),
        "quantize.imatrix.chunks_count": GGUFValue(5, "UINT32"),
    }
    assert list(found.metadata) == [
        f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count")
    ]
    assert found.warnings == (
        f"imatrix: {path}: {DOWN}: experts 1, 4, 5 and 1 more saw no data: all columns count the "
        "same there.",
    )


def test_a_tensor_of_several_matrices_with_one_count(tmp_path: Path) -> None:
    """All inputs went through each of its matrices: llama-imatrix writes one row of them all."""
    flat = Entry(DOWN, sums(8 * 64), (12,))
    found = fitted(write_gguf(tmp_path / "i.gguf", [flat]), MODEL)
    assert found is not None
    same(found.importances[DOWN], flat.means.reshape(8, 64))
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("name", "n_chunks", "datasets", "said"),
    [
        ("./i.gguf", 0, ["set"], ("./i.gguf", "set", None)),
        ("x/../i.gguf", 1, [], ("x/../i.gguf", None, 1)),
        ("i.gguf", 1, ["", "second"], ("i.gguf", "", 1)),
        ("i.gguf", 1, ["a" * 127 + "b"], ("i.gguf", "a" * 127, 1)),
        ("i.gguf", 1, ["a" * 126 + "é"], ("i.gguf", "a" * 126 + "\udcc3", 1)),
        ("./" * 61 + "i.gguf", 1, ["a\0b"], ("./" * 61 + "i.ggu", "a", 1)),
    ],
)
def test_what_the_stock_tool_writes_of_names(
    name: str, n_chunks: int, datasets: list[str], said: tuple[Any, ...],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As they are given, and 127 bytes of them."""
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    write_gguf(Path("i.gguf"), ENTRIES, datasets=datasets, n_chunks=n_chunks)
    found = fitted(name, MODEL)
    assert found is not None
    keys = ("file", "dataset", "chunks_count")
    values = [found.metadata.get(f"quantize.imatrix.{key}") for key in keys]
    assert [None if value is None else value.value for value in values] == list(said)


def test_warnings_are_few(tmp_path: Path) -> None:
    names = [f"blk.{i}.ffn_up_exps.weight" for i in range(20)]
    model = [(name, (2, 3, 32)) for name in names] + MODEL
    entries = [Entry(name, sums(2, 32), (0, i % 2)) for i, name in enumerate(names)]
    entries += [Entry(name, sums(32), (3,)) for name in ("blk.9.old\\n.weight", "b", "c")]
    entries.append(Entry(UP, sums(256), (0,)))
    entries += [Entry(name, sums(128), (1,)) for name in (EMBEDDING, LAYER_EMBEDDING)]
    found = fitted(write_gguf(tmp_path / "i.gguf", entries), model)
    assert found is not None
    same(found.importances[UP], np.ones((1, 256), np.float32))
    start = f"imatrix: {tmp_path / 'i.gguf'}: "
    assert all(warning.startswith(start) for warning in found.warnings)
    said = [warning.removeprefix(start) for warning in found.warnings]
    rest = ": all columns count the same there."
    assert said[:3] == [
        "blk.9.old\\\\n.weight and 2 more: this model has no such tensors. They were left out.",
        "token_embd.weight: it does not fit this model's. It was left out.",
        "per_layer_token_embd.weight: it does not fit this model's. It was left out.",
    ]
    assert not {EMBEDDING, LAYER_EMBEDDING} & found.importances.keys()
    assert said[3:5] == [
        f"{names[0]}: all 2 experts saw no data{rest}",
        f"{names[1]}: expert 0 saw no data{rest}",
    ]
    assert said[11:] == ["13 more tensors have experts that saw no data."]
    (only,) = fitted({UP: sums(256), "y": sums(3)}, MODEL).warnings  # type: ignore[union-attr]
    assert only == "imatrix: y: this model has no such tensor. It was left out."
    alone = fitted(write_gguf(tmp_path / "j.gguf", [Entry(UP, sums(256), (0,))]), MODEL)
    assert alone is not None and f"{UP}: it saw no data" in alone.warnings[0]


def test_faults_are_told_together(tmp_path: Path) -> None:
    wrong = sums(256)
    wrong[3] = np.nan
    entries = [Entry(UP, wrong), Entry(DOWN, sums(8, 32), (1,) * 8), Entry("absent", -sums(4))]
    entries.append(Entry("output_norm.weight", sums(2, 256), (2, np.nan)))
    with pytest.raises(InputError) as raised:
        fitted(write_gguf(tmp_path / "i.gguf", entries), MODEL)
    assert str(raised.value) == (
        f"imatrix: {tmp_path / 'i.gguf'}: {UP}: they must be finite and not negative; "
        f"{DOWN}: its shape is (8, 32), not float32[8, 64]; "
        "absent: they must be finite and not negative; "
        "output_norm.weight: they must be finite and not negative; "
        "output_norm.weight: its shape is (2, 256), not float32[256]. "
        "Collect it anew. Pass one that was made from this model."
    )
    other = {f"blk.{i}": np.ones(5, np.float32) for i in range(99)}
    with pytest.raises(InputError, match=r"blk\.7: its shape.*; and 91 more\. Pass one"):
        fitted(other, [(name, (3, 6)) for name in other])


@pytest.mark.parametrize("count", [-1, np.inf, np.nan, 1e30])
def test_counts_that_are_none(count: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "i.gguf", [Entry(DOWN, sums(8, 64), (1,) * 7 + (count,))])
    with pytest.raises(InputError, match=f"{DOWN}: they must be finite"):
        fitted(path, MODEL)


@pytest.mark.parametrize(
    ("imatrix", "match"),
    [
        ({}, "none of its 0 names"),
        ({"nonesuch": np.ones(256, np.float32)}, "none of its 1 names"),
        ({UP: np.ones(255, np.float32)}, r"ffn_up.*shape is \(255,\), not float32\[256\]"),
        ({UP: np.ones((2, 256), np.float32)}, "ffn_up"),
        ({UP: np.ones((256, 1), np.float32)}, "ffn_up"),
        ({UP: np.float32(1)}, r"ffn_up.*\(\)"),
        ({UP: np.full(256, np.inf, np.float32)}, "ffn_up.*finite"),
        ({UP: np.full(256, np.nan, np.float32)}, "ffn_up.*finite"),
        ({UP: np.full(256, 1e300)}, "ffn_up.*finite"),
        ({UP: np.full(256, -1, np.float32)}, "ffn_up.*not negative"),
        ({UP: np.ones(256, np.int32)}, "ffn_up.*int32"),
        ({UP: ["a"]}, "ffn_up"),
        ({UP: [[1.0], [1.0, 2.0]]}, "ffn_up"),
        ({UP: np.ones(256), 3: np.ones(3, bool)}, "3: its dtype is bool"),
        ({EMBEDDING: np.ones(255)}, "token_embd"),
        (3, "mapping"),
        (b"i.gguf", "mapping"),
        ("a\0b", "NUL|null"),
        ("a\ud800b", "cannot hold"),
    ],
)
def test_bad_arguments(imatrix: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        fitted(imatrix, MODEL)


def test_numbers_from_python() -> None:
    assert fitted(None, MODEL) is None
    values = sums(256).astype(np.float16)
    found = fitted({UP: values[::-1], DOWN: np.ones(8 * 64)}, MODEL)
    assert found is not None and (found.metadata, found.warnings) == ({}, ())
    same(found.importances[UP], values[::-1].astype(np.float32).reshape(1, -1))
    same(found.importances[DOWN], np.ones((8, 64), np.float32))
    made = Imatrix({UP: np.ones((1, 256), np.float32)})
    found = fitted(made, MODEL)
    assert found is not None and (found.metadata, found.warnings) == ({}, ())


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular"):
        read_imatrix(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_imatrix(tmp_path)
    with pytest.raises(FileNotFoundError):
        fitted(str(tmp_path / "none.gguf"), MODEL)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_files_equal_to_upstream(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files, with what they say of the importances; the source says some of others."""
    monkeypatch.chdir(tmp_path)
    kind = ARCHITECTURES["phimoe"]
    source = write_source(tmp_path / "source.gguf", kind)
    before = {"quantize.imatrix.dataset": "other", "quantize.imatrix.chunks_count": 3}
    edit_gguf(source, set={**before, "test.last": "stays"})
    entries = [
        Entry(name, np.round(values * 640), (640,) * (values.size // values.shape[-1]))
        for name, values in importances(kind).items()
    ]
    entries[-1] = Entry(entries[-1].name, entries[-1].sums, (*entries[-1].counts[:-2], 0, 0))
    entries.append(Entry("blk.99.ffn_up.weight", sums(256)))
    imatrix = f"./made.{form}"
    if form == "gguf":
        write_gguf(Path(imatrix), entries, n_chunks=9)
    else:
        write_dat(Path(imatrix), entries, n_calls=8, end=dat_end(9, b"calibration.txt"))
    np.savez("arrays.npz", **{entry.name: entry.means for entry in entries})
    pairs = [
        ("quantize.imatrix.file", imatrix),
        ("quantize.imatrix.dataset", "calibration.txt"),
        ("quantize.imatrix.entries_count", len(entries)),
        ("quantize.imatrix.chunks_count", 9),
    ]
    expected, out = tmp_path / "upstream.gguf", tmp_path / "ours.gguf"
    job = {"source": str(source), "out": str(expected), "file_type": FILE_TYPE["Q4_K_M"]}
    run_jobs(tmp_path, [job | {"imatrix": "arrays.npz", "metadata": pairs}])
    report = quantize_model(source, out, "Q4_K_M", imatrix=imatrix, threads=2)
    assert out.read_bytes() == expected.read_bytes()
    assert report.nbytes == out.stat().st_size
    warned = [f"imatrix: {imatrix}: {entry.name}: " for entry in entries[:-3:-1]]
    assert len(report.warnings) == 2
    assert all(said.startswith(w) for said, w in zip(report.warnings, warned, strict=True))
