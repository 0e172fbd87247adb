"""diff_gguf against numpy over what the gguf package reads, and against hand-built files."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from phiggml.gguf_diff import GGUFTensorChange
from phiggml.progress import Progress

V = gb.Layout().numbers("v", gb.FLOAT32, [1.5, 2.5])
LAYOUTS = [gb.Layout(version, order) for version in (1, 2, 3) for order in "<>"]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def of_metadata(folder: Path, a: list[bytes], b: list[bytes], **other: Any) -> pg.GGUFDiff:
    paths = [
        written(folder / f"{name}.gguf", gb.gguf(pairs))
        for name, pairs in zip("ab", (a, b), strict=True)
    ]
    return pg.diff_gguf(*paths, **other)


def of_tensor(folder: Path, **tensors: tuple[int, tuple[int, ...], bytes]) -> pg.GGUFDiff:
    """Of two files that have a tensor `t` each: type, sizes of its axes as in the file, data."""
    for name, (kind, ne, data) in tensors.items():
        padded = data + bytes(-len(data) % 32)
        written(folder / f"{name}.gguf", gb.gguf([], [gb.tensor("t", ne, kind)], padded))
    return pg.diff_gguf(folder / "a.gguf", folder / "b.gguf")


def expected_error(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, float]:
    x, y = a.astype(np.longdouble).ravel(), b.astype(np.longdouble).ravel()
    rmse = np.sqrt(np.mean((x - y) ** 2))
    return {
        "rmse": float(rmse),
        "nrmse": float(rmse / np.sqrt(np.mean(x**2))),
        "max_abs": float(np.max(np.abs(x - y))),
        "cosine": float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))),
    }


def assert_error(change: GGUFTensorChange, expected: dict[str, float]) -> None:
    assert change.error is not None
    for name, value in expected.items():
        # Sums of some 10^6 float64 terms: a relative error of 1e-10 is far above theirs.
        assert getattr(change.error, name) == pytest.approx(value, rel=1e-10), name


# tensors -----------------------------------------------------------------------------------------


def test_quantized_against_numpy(nano_f16: Path, nano_q4: Path) -> None:
    found = pg.diff_gguf(nano_f16, nano_q4, threads=2)
    a = {tensor.name: tensor for tensor in gguf.GGUFReader(nano_f16).tensors}
    b = {tensor.name: tensor for tensor in gguf.GGUFReader(nano_q4).tensors}
    changed = {change.name: change for change in found.tensors_changed}
    assert set(changed) == {n for n in a if a[n].data.tobytes() != b[n].data.tobytes()}
    assert found.n_tensors_equal == len(a) - len(changed) > 0
    for name, change in changed.items():
        x, y = (gguf.dequantize(t.data, t.tensor_type) for t in (a[name], b[name]))
        assert (change.type_a, change.type_b) == ("F16", b[name].tensor_type.name)
        assert (change.shape_a, change.shape_b) == (x.shape, y.shape)
        assert change.data_equal is None  # of two types, bytes are not compared
        assert_error(change, expected_error(x, y))
    assert [change.key for change in found.metadata_changed] == ["general.file_type"]
    assert not found.same


def test_equal_files(nano_q4: Path) -> None:
    found = pg.diff_gguf(nano_q4, nano_q4)
    assert found.same
    assert (found.tensors_changed, found.n_tensors_equal) == ((), 27)
    without = pg.diff_gguf(nano_q4, nano_q4, tensors=False)
    assert (without.same, without.n_tensors_equal) == (True, None)
    assert "tensors" not in str(without)


def test_one_bit_in_a_late_piece(tmp_path: Path) -> None:
    """Pieces before it are equal; the sums must count them all the same."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((700, 3000)).astype(np.float32)
    b = a.copy()
    b[-1, -1] += 0.5
    found = of_tensor(
        tmp_path, a=(gb.F32, (3000, 700), a.tobytes()), b=(gb.F32, (3000, 700), b.tobytes())
    )
    (change,) = found.tensors_changed
    assert change.data_equal is False
    assert_error(change, expected_error(a, b))
    quick = pg.diff_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf", errors=False)
    assert quick.tensors_changed[0].error is None
    seen: list[int] = []
    pg.diff_gguf(
        tmp_path / "a.gguf", tmp_path / "b.gguf", progress=lambda event: seen.append(event.done)
    )
    assert len(seen) > 4
    assert seen == sorted(seen)
    assert not quick.same


@pytest.mark.parametrize("g", LAYOUTS)
def test_layout_is_no_difference(g: gb.Layout, tmp_path: Path) -> None:
    """Version, byte order, order of keys and tensors, and phiggml.padding."""
    a = [gb.number("n", gb.INT32, -5), gb.strings("s", ["x", ""]), V]
    b = [
        g.numbers("phiggml.padding", gb.UINT8, [0] * 40),
        g.numbers("v", gb.FLOAT32, [1.5, 2.5]),
        g.strings("s", ["x", ""]),
        g.number("n", gb.INT32, -5),
    ]
    values = np.arange(8, dtype=np.float32)
    plain = [gb.tensor("t", (8,), gb.F32), gb.tensor("u", (3,), gb.I8, offset=32)]
    first = gb.gguf(a, plain, values.tobytes() + b"\1\2\3" + bytes(29))
    tensors = [g.tensor("u", (3,), gb.I8), g.tensor("t", (8,), gb.F32, offset=32)]
    second = g.gguf(b, tensors, b"\1\2\3" + bytes(29) + g.pack("8f", *values))
    found = pg.diff_gguf(written(tmp_path / "a.gguf", first), written(tmp_path / "b.gguf", second))
    assert found.same, str(found)
    assert found.n_tensors_equal == 2


def test_tensors_of_one_file_only_and_of_other_shapes(tmp_path: Path) -> None:
    tensors = [gb.tensor("t", (4, 2), gb.F32), gb.tensor("gone", (8,), gb.F32, offset=32)]
    a = written(tmp_path / "a.gguf", gb.gguf([], tensors, bytes(64)))
    tensors = [gb.tensor("t", (2, 4), gb.F32), gb.tensor("new", (2, 3), gb.I8, offset=32)]
    b = written(tmp_path / "b.gguf", gb.gguf([], tensors, bytes(64)))
    found = pg.diff_gguf(a, b)
    assert found.tensors_only_a == {"gone": ("F32", (8,))}
    assert found.tensors_only_b == {"new": ("I8", (3, 2))}
    assert found.tensors_changed == (
        GGUFTensorChange("t", "F32", "F32", (2, 4), (4, 2), None, None),
    )
    text = str(found)
    for line in ("- gone: F32, 8", "+ new: I8, 3 x 2", "tensors: 1 only in A, 1 only in B, 1"):
        assert line in text
    assert "2 x 4 -> 4 x 2" in text


def test_integers_and_float64_have_errors_of_their_own(tmp_path: Path) -> None:
    a = np.array([1, -2, 3, 2**40], np.int64)
    b = np.array([1.0, -2.5, 3.0, 2.0**40 + 1], np.float64)
    found = of_tensor(tmp_path, a=(gb.I64, (4,), a.tobytes()), b=(gb.F64, (4,), b.tobytes()))
    assert_error(found.tensors_changed[0], expected_error(a, b))


def test_types_without_numbers_are_compared_by_their_bytes(tmp_path: Path) -> None:
    q8_1 = pg.QuantType("Q8_1")
    blocks = [bytes(q8_1.block_bytes), b"\1" + bytes(q8_1.block_bytes - 1)]
    found = of_tensor(tmp_path, a=(q8_1.id, (32,), blocks[0]), b=(q8_1.id, (32,), blocks[1]))
    (change,) = found.tensors_changed
    assert (change.data_equal, change.error) == (False, None)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0], [0, 0], None),
        ([0, 0], [-0.0, 0], (0, 0, 0, 1)),  # other bytes, equal numbers
        ([0, 0], [3, 4], (math.sqrt(12.5), math.inf, 4, 0)),
        ([3, 4], [0, 0], (math.sqrt(12.5), 1, 4, 0)),
        ([1, 2], [1, math.nan], (math.nan, math.nan, math.nan, math.nan)),
        ([1, 2], [1, math.inf], (math.inf, math.inf, math.inf, math.nan)),
    ],
)
def test_edges_of_the_measures(
    a: list[float], b: list[float], expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    x, y = np.array(a, np.float32).tobytes(), np.array(b, np.float32).tobytes()
    found = of_tensor(tmp_path, a=(gb.F32, (2,), x), b=(gb.F32, (2,), y))
    if expected is None:
        assert found.same
        return
    error = found.tensors_changed[0].error
    assert error is not None
    measures = (error.rmse, error.nrmse, error.max_abs, error.cosine)
    assert measures == pytest.approx(expected, nan_ok=True)
    assert str(found)


# metadata ----------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    a = [
        gb.number("same", gb.FLOAT32, 0.1),
        gb.number("gone", gb.UINT32, 7),
        gb.pair("value", gb.STRING, gb.string("old")),
        gb.number("type", gb.UINT32, 5),
        gb.number("to array", gb.UINT32, 5),
        gb.number("nan", gb.FLOAT64, math.nan),
    ]
    b = [
        gb.number("nan", gb.FLOAT64, math.nan),
        gb.array("to array", gb.UINT32, 1, b"\5\0\0\0"),
        gb.number("type", gb.INT32, 5),
        gb.pair("value", gb.STRING, gb.string("new")),
        gb.strings("added", ["x"]),
        gb.number("same", gb.FLOAT32, 0.1),
    ]
    found = of_metadata(tmp_path, a, b)
    assert found.metadata_only_a == {"gone": 7}
    assert found.metadata_only_b == {"added": ["x"]}
    value, type, to_array = found.metadata_changed
    assert (value.key, value.a, value.b) == ("value", "old", "new")
    assert (type.key, type.type_a, type.type_b, type.a, type.b) == ("type", "UINT32", "INT32", 5, 5)
    assert (to_array.type_a, to_array.type_b) == ("UINT32", "UINT32[1]")
    assert {change.n_different for change in found.metadata_changed} == {None}
    lines = str(found).splitlines()
    assert lines[2:] == [
        "metadata: 1 only in A, 1 only in B, 3 changed",
        "- gone: 7",
        "+ added: ['x']",
        "~ value: 'old' -> 'new'",
        "~ type: UINT32 -> INT32: 5 -> 5",
        "~ to array: UINT32 -> UINT32[1]: 5 -> [5]",
        "tensors: 0 only in A, 0 only in B, 0 changed, 0 equal",
    ]


def test_arrays_are_summarised(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(5000)]
    changed = [*tokens[:17], "other", *tokens[18:4000], "more", *tokens[4001:], "end"]
    floats = np.array([1, np.nan, 3, 4], np.float32)
    a = [
        gb.strings("tokens", tokens),
        gb.array("floats", gb.FLOAT32, 4, floats.tobytes()),
        gb.array("cut", gb.INT8, 3, b"\1\2\3"),
        gb.array("kind", gb.UINT16, 2, b"\1\0\2\0"),
    ]
    floats[2] = -3
    b = [
        gb.strings("tokens", changed),
        gb.array("floats", gb.FLOAT32, 4, floats.tobytes()),
        gb.array("cut", gb.INT8, 2, b"\1\2"),
        gb.array("kind", gb.INT16, 2, b"\1\0\2\0"),
    ]
    found = of_metadata(tmp_path, a, b)
    changes = {change.key: (change.n_different, change.first) for change in found.metadata_changed}
    assert changes == {"tokens": (3, 17), "floats": (1, 2), "cut": (1, 2), "kind": (0, None)}
    lines = str(found).splitlines()[3:7]
    assert lines == [
        "~ tokens: STRING[5000] -> STRING[5001]: 3 of 5,001 elements differ, the first is 17: "
        "'token 17' -> 'other'",
        "~ floats: FLOAT32[4]: 1 of 4 elements differ, the first is 2: 3 -> -3",
        "~ cut: INT8[3] -> INT8[2]: 1 of 3 elements differ, the first is 2: 3 -> nothing",
        "~ kind: UINT16[2] -> INT16[2]: 0 of 2 elements differ",
    ]


def test_results_outlive_the_files(tmp_path: Path) -> None:
    found = of_metadata(
        tmp_path, [gb.strings("s", ["a", "b"])], [gb.array("n", gb.INT32, 1, b"\1\0\0\0")]
    )
    for path in tmp_path.iterdir():
        path.unlink()
    assert list(found.metadata_only_a["s"]) == ["a", "b"]
    assert found.metadata_only_b["n"].tolist() == [1]
    assert isinstance(found.metadata_only_a["s"], list)


def test_results_can_be_pickled(tmp_path: Path) -> None:
    a = [gb.strings("s", ["a", "b"]), gb.strings("gone", ["x"]), V]
    b = [gb.strings("s", ["a", "c"]), gb.Layout().numbers("v", gb.FLOAT32, [1.5, 3.5])]
    found = of_metadata(tmp_path, a, b)
    for path in tmp_path.iterdir():
        os.truncate(path, 0)  # a view of the mapped file would end the process
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found)
    strings, numbers = again.metadata_changed
    assert (strings.a, strings.b, again.metadata_only_a) == (
        ["a", "b"],
        ["a", "c"],
        {"gone": ["x"]},
    )
    assert (numbers.a.tolist(), numbers.b.tolist()) == ([1.5, 2.5], [1.5, 3.5])


def test_arrays_of_both_byte_orders(tmp_path: Path) -> None:
    g = gb.Layout(3, ">")
    values = [1, math.nan, 3, 4]
    a = written(tmp_path / "a.gguf", gb.gguf([gb.Layout().numbers("n", gb.FLOAT32, values)]))
    values[2] = -3
    b = written(tmp_path / "b.gguf", g.gguf([g.numbers("n", gb.FLOAT32, values)]))
    for found in (pg.diff_gguf(a, b), pg.diff_gguf(b, a)):
        (change,) = found.metadata_changed
        assert (change.n_different, change.first) == (1, 2)


def test_a_strangers_names_stay_on_their_line(tmp_path: Path) -> None:
    evil = "\x1b[2J\nmetadata: 0\r\u2028"
    pairs = [gb.pair(evil, gb.STRING, gb.string(evil))]
    tensors = [gb.tensor(evil, (8,), gb.F32)]
    a = written(tmp_path / "a.gguf", gb.gguf(pairs, tensors, bytes(32)))
    b = written(tmp_path / "b.gguf", gb.gguf([], [], b""))
    for found in (pg.diff_gguf(a, b), pg.diff_gguf(b, a)):
        assert len(str(found).splitlines()) == 6
        assert str(found).replace("\n", "").isprintable()


def test_progress(nano_f16: Path, nano_q4: Path) -> None:
    seen: list[Progress] = []
    pg.diff_gguf(nano_f16, nano_q4, progress=seen.append)
    pg.diff_gguf(nano_f16, nano_f16, progress=seen.append)
    with pg.GGUFFile(nano_f16) as file:
        total = sum(tensor.nbytes for tensor in file.tensors.values())
    assert {event.total for event in seen} == {total}
    ends = [i for i, event in enumerate(seen) if event.done == 0]
    assert len(ends) == 2
    for run in (seen[: ends[1]], seen[ends[1] :]):
        assert run[-1] == Progress("diff", total, total)
        assert [event.done for event in run] == sorted(event.done for event in run)

    def interrupt(_event: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pg.diff_gguf(nano_f16, nano_q4, progress=interrupt)


def test_a_file_that_is_no_gguf(nano_q4: Path, tmp_path: Path) -> None:
    junk = written(tmp_path / "junk.gguf", b"junk" * 20)
    with pytest.raises(pg.FormatError) as caught:
        pg.diff_gguf(nano_q4, junk)
    assert caught.value.path == str(junk)
