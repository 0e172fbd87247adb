"""compare_types: figures against numpy's float64, which types are chosen, what is timed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from phiggml import comparison
from phiggml.comparison import ComparedType, pooled

ALL = [str(type) for type in pg.quant_types()]
NEEDY = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
BLOCKS_OF_32 = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"}
FLOATS = {"F32", "F16", "BF16"}


def heavy_tailed(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def importances(n: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0.01, 4, n).astype(np.float32)


def decoded(x: pg.QuantizedArray) -> npt.NDArray[np.float64]:
    """Numbers by the gguf package where it knows the type."""
    if x.type in ("F16", "F32"):
        return x.data.view(f"<f{x.type.block_bytes}").astype(np.float64)
    if x.type in ("Q1_0", "Q2_0"):
        return x.dequantize(dtype=np.float64)
    numbers: npt.NDArray[np.float32] = gguf.quants.dequantize(
        x.data, gguf.GGMLQuantizationType(x.type.id)
    )
    return numbers.astype(np.float64)


def figures(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """nrmse, max_abs and cosine."""
    difference = np.linalg.norm(before - after)
    nrmse = difference / np.linalg.norm(before)
    lengths = np.linalg.norm(before) * np.linalg.norm(after)
    return (
        float(nrmse),
        float(np.abs(before - after).max()),
        float(np.vdot(before, after) / lengths),
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_figures_equal_numpys(weighted: bool) -> None:
    """Within 1e-12 relative: sums of float64, taken in another order."""
    x, imatrix = heavy_tailed(5, 1024), importances(1024) if weighted else None
    found = pg.compare_types(x, imatrix=imatrix, threads=2)
    assert {row.type for row in found} == set(ALL) - (set() if weighted else NEEDY)
    for row in found:
        after = decoded(pg.quantize(x, row.type, imatrix=imatrix))
        nrmse, max_abs, cosine = figures(x.astype(np.float64), after)
        assert row.nrmse == pytest.approx(nrmse, rel=1e-12), row.type
        assert row.cosine == pytest.approx(cosine, rel=1e-12), row.type
        assert row.max_abs == max_abs, row.type
        assert row.bits_per_weight == row.type.bits_per_weight
        assert 0 < row.seconds < 10


def test_importances_make_a_difference() -> None:
    x = heavy_tailed(4, 512)
    (plain,) = pg.compare_types(x, ["Q4_K"])
    (weighted,) = pg.compare_types(x, ["Q4_K"], imatrix=importances(512))
    assert weighted.nrmse != plain.nrmse


def test_rows_are_sorted_by_bits_then_error() -> None:
    found = pg.compare_types(heavy_tailed(4, 512), ALL, imatrix=importances(512))
    keys = [(row.bits_per_weight, row.nrmse) for row in found.rows]
    assert keys == sorted(keys) and len(keys) == len(found) == len(ALL)
    assert [row.type for row in found][-3:] == ["F16", "BF16", "F32"]
    # Q4_0, Q4_K and IQ4_NL have as many bits.
    assert len({bits for bits, _ in keys}) < len(keys)


@pytest.mark.parametrize(
    ("n", "weighted", "expected"),
    [
        (256, True, set(ALL)),
        (256, False, set(ALL) - NEEDY),
        (384, True, FLOATS | BLOCKS_OF_32 | {"NVFP4", "Q1_0", "Q2_0"}),
        (96, True, FLOATS | BLOCKS_OF_32),
        (96, False, FLOATS | BLOCKS_OF_32),
        (3, False, FLOATS),
    ],
)
def test_types_that_fit(n: int, weighted: bool, expected: set[str]) -> None:
    found = pg.compare_types(heavy_tailed(n), imatrix=importances(n) if weighted else None)
    assert {str(row.type) for row in found} == expected


def test_types_are_taken_once_and_in_any_case() -> None:
    names = (name for name in ("q8_0", "Q4_0", "Q8_0"))
    found = pg.compare_types(heavy_tailed(64), names)
    assert [row.type for row in found] == ["Q4_0", "Q8_0"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats(dtype: Any) -> None:
    x = heavy_tailed(4, 256).astype(dtype)
    (expected,) = pg.compare_types(x.astype(np.float32), ["Q5_K"])
    for given in (x, np.asfortranarray(x), x.tolist()):
        (row,) = pg.compare_types(given, ["Q5_K"])
        assert dataclasses.replace(row, seconds=expected.seconds) == expected


def test_seconds_are_those_of_quantizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the error, nor of the first use, by a clock that only these calls move."""
    now = 0.0
    x, imatrix = heavy_tailed(2, 512), importances(512)
    calls: list[tuple[Any, ...]] = []

    def quantize(values: Any, type: str, **settings: Any) -> None:
        nonlocal now
        calls.append((values is x, type, settings.get("imatrix") is imatrix, settings))
        now += 1.5 if values is x else 10

    def error(*arguments: Any, **settings: Any) -> pg.QuantizationError:
        nonlocal now
        now += 100
        return pg.quantization_error(*arguments, **settings)

    monkeypatch.setattr(comparison, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(comparison, "quantize", quantize)
    monkeypatch.setattr(comparison, "quantization_error", error)
    found = pg.compare_types(x, ["Q4_K", "IQ2_XS"], imatrix=imatrix, threads=1)
    assert [row.seconds for row in found] == [1.5, 1.5]
    timed = [(type, given, settings["threads"]) for is_x, type, given, settings in calls if is_x]
    assert timed == [("Q4_K", True, 1), ("IQ2_XS", True, 1)]
    assert [is_x for is_x, *_ in calls] == [False, True, False, True]


def test_a_table() -> None:
    rows = (
        ComparedType(pg.QuantType("F32"), 32.0, 0.0, 0.0, 1.0, 123.4),
        ComparedType(pg.QuantType("IQ2_XXS"), 2.0625, 0.25, 12.5, 0.968, 0.000123456),
    )
    assert str(pg.TypeComparison(rows)).splitlines() == [
        "type       bits     nrmse  max abs    cosine   seconds",
        "IQ2_XXS   2.062  0.250000     12.5  0.968000  0.000123",
        "F32      32.000  0.000000        0  1.000000       123",
    ]


def test_what_is_found_stays() -> None:
    found = pg.compare_types(heavy_tailed(32), ["Q8_0"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows[0].nrmse = 0.0  # type: ignore[misc]


def test_an_array_of_zeros() -> None:
    found = pg.compare_types(np.zeros((2, 256), np.float32))
    assert {(row.nrmse, row.max_abs, row.cosine) for row in found} == {(0.0, 0.0, 1.0)}


def test_pooled_is_that_of_scaled_arrays() -> None:
    """The nrmse of one array, in which each is scaled to a root mean square of 1; 1e-12."""
    arrays = [heavy_tailed(3, 256), 1e-3 * heavy_tailed(40, 256, seed=2)]
    found = [pg.compare_types(x, ["Q4_0", "Q2_K"]) for x in arrays]
    together = pooled([(x.size, part) for x, part in zip(arrays, found, strict=True)])
    for row in together:
        scaled, errors, cosines = [], [], []
        for x in arrays:
            before, after = x.astype(np.float64), decoded(pg.quantize(x, row.type))
            rms = np.sqrt(np.mean(before**2))
            scaled.append((before / rms).ravel())
            errors.append(((before - after) / rms).ravel())
            cosines.append(figures(before, after)[2])
        difference, whole = np.concatenate(errors), np.concatenate(scaled)
        nrmse = np.linalg.norm(difference) / np.linalg.norm(whole)
        assert row.nrmse == pytest.approx(nrmse, rel=1e-12)
        assert row.cosine == pytest.approx((3 * cosines[0] + 40 * cosines[1]) / 43, rel=1e-12)
        own = [next(r for r in part if r.type == row.type) for part in found]
        assert row.max_abs == max(r.max_abs for r in own)
        assert row.seconds == pytest.approx(sum(r.seconds for r in own))
        assert row.bits_per_weight == row.type.bits_per_weight
    assert [row.type for row in together] == ["Q2_K", "Q4_0"]


X = heavy_tailed(2, 256)


@pytest.mark.parametrize(
    ("x", "types", "settings", "says"),
    [
        (X, "Q4_K", {}, "must be a list"),
        (X, 4, {}, "must be a list"),
        (X, [], {}, "empty"),
        (X, [4], {}, "unknown"),
        (X, ["Q4_K", "Q9_K"], {}, "unknown"),
        (X, ["Q8_1"], {}, "no target"),
        (X, ["Q8_0", "IQ2_XXS"], {}, "importance matrix"),
        (X[:, :96], ["Q8_0", "Q4_K"], {}, "multiple of its block of 256"),
        (np.float32(1), None, {}, "no axes"),
        (1.5, None, {}, "no axes"),
        (X[:0], None, {}, "no elements"),
        ([], None, {}, "no elements"),
        ([[1.0], [1.0, 2.0]], None, {}, "no array"),
        (X.astype(np.int32), None, {}, "int32"),
        (X * np.float32(np.nan), None, {}, "NaN"),
        (X * np.float32(1e30), ["F16"], {}, "overflow"),
        (X, None, {"imatrix": importances(64)}, "imatrix"),
        (X, None, {"imatrix": -importances(256)}, "imatrix"),
        (X, None, {"threads": 0}, "threads"),
    ],
)
def test_calls_that_cannot_be(x: Any, types: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(pg.InputError, match=says):
        pg.compare_types(x, types, **settings)


def test_types_are_checked_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "quantize", None)
    for types in (["Q4_0", "IQ1_S"], ["Q4_0", "Q1_0"]):
        with pytest.raises(pg.InputError):
            pg.compare_types(heavy_tailed(96), types)
