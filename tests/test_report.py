"""What a report tells: shares, table and JSON; and how far a job says it is."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gguf
import pytest

import phiggml as pg
from command_line import NANO
from phiggml.recipe import Plan, PlannedTensor
from phiggml.report import Report

KEYS = {
    "path", "paths", "type", "nbytes", "bits_per_weight", "seconds", "stages", "peak_memory",
    "written", "notes", "warnings", "types", "tensors",
}  # fmt: skip
STAGES = {"plan": 0.25, "read": 1.5, "convert": 30.25, "write": 2.0, "finish": 0.125}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pg.ConversionReport:
    return pg.convert(NANO, tmp_path_factory.mktemp("report") / "nano.gguf", "Q4_K_M")


def tensor(name: str, type: str = "Q4_K", nbytes: int = 144) -> PlannedTensor:
    return PlannedTensor(name, (1, 256), "F16", type, 512, nbytes)


def report(*tensors: PlannedTensor, **more: Any) -> Report:
    return Report(Path("out.gguf"), Plan("Q4_K_M", 15, tensors), 4096, 34.5, **more)


def test_shares_are_those_of_the_file(written: pg.ConversionReport) -> None:
    nbytes: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    numbers = 0
    for found in gguf.GGUFReader(written.path).tensors:
        nbytes[found.tensor_type.name] += int(found.n_bytes)
        tensors[found.tensor_type.name] += 1
        numbers += int(found.n_elements)
    total = sum(nbytes.values())
    assert {t.type: (t.tensors, t.nbytes) for t in written.types} == {
        type: (tensors[type], nbytes[type]) for type in nbytes
    }
    for share in written.types:
        assert share.share == pytest.approx(nbytes[share.type] / total, rel=1e-12)
    assert sum(share.share for share in written.types) == pytest.approx(1, rel=1e-12)
    assert [t.type for t in written.types] == [type for type, _ in nbytes.most_common()]
    assert written.bits_per_weight == pytest.approx(8 * total / numbers, rel=1e-12)


def test_the_document_is_json_of_the_file(written: pg.ConversionReport) -> None:
    document = json.loads(json.dumps(written.document(), allow_nan=False))
    assert document.keys() == KEYS
    assert document["path"] == str(written.path)
    assert document["paths"] == [str(written.path)]
    assert document["nbytes"] == written.path.stat().st_size
    assert (document["type"], document["written"]) == ("Q4_K_M", True)
    found = {
        t.name: (t.tensor_type.name, int(t.n_bytes), [int(n) for n in reversed(t.shape)])
        for t in gguf.GGUFReader(written.path).tensors
    }
    keys = {"name", "shape", "source_type", "type", "source_nbytes", "nbytes", "note", "rule"}
    assert {frozenset(t) for t in document["tensors"]} == {frozenset(keys | {"nrmse"})}
    assert {frozenset(t) for t in document["types"]} == {
        frozenset({"type", "tensors", "nbytes", "share"})
    }
    told = {t["name"]: (t["type"], t["nbytes"], t["shape"]) for t in document["tensors"]}
    assert told == found
    assert {t["nrmse"] for t in document["tensors"]} == {None}
    assert sum(t["nbytes"] for t in document["types"]) == sum(n for _, n, _ in found.values())


def test_a_document_has_finite_numbers_only() -> None:
    errors = {"a": math.nan, "b": math.inf, "c": 0.125}
    whole = report(*map(tensor, "abcd"), errors=errors, stages=STAGES, warnings=("Mind it.",))
    document = json.loads(json.dumps(whole.document(), allow_nan=False))
    assert [t["nrmse"] for t in document["tensors"]] == [None, None, 0.125, None]
    assert (document["stages"], document["warnings"]) == (STAGES, ["Mind it."])
    assert document["peak_memory"] is None
    assert report(peak_memory=7).document()["peak_memory"] == 7
    assert whole.largest_error == ("c", 0.125)
    assert report(tensor("a"), errors={"a": math.nan}).largest_error is None


def test_a_model_without_tensors() -> None:
    empty = report()
    assert (empty.types, empty.bits_per_weight, empty.largest_error) == ((), 0, None)
    assert report(tensor("a", "F32", 0)).types[0].share == 0
    json.dumps(empty.document(), allow_nan=False)
    assert str(empty).splitlines()[-1].startswith("out.gguf: 4,096 bytes, written in 34.5 s")


def test_the_table_is_told_line_by_line() -> None:
    whole = report(
        tensor("blk.0.a.weight"),
        replace(tensor("b", "Q6_K", 1_210), note="rows of 250 do not divide"),
        stages=STAGES,
        peak_memory=412_000_000,
        errors={"blk.0.a.weight": 0.0625, "b": 0.01},
        warnings=("blk.0.a.weight: expert 3 has no data.",),
        paths=(Path("out-1.gguf"), Path("out-2.gguf")),
    )
    assert str(whole).splitlines() == [
        "tensor          shape    from  to    bytes    nrmse",
        "blk.0.a.weight  1 x 256  F16   Q4_K    144  0.06250",
        "b               1 x 256  F16   Q6_K  1,210  0.01000  rows of 250 do not divide",
        "",
        "type  tensors  bytes  share",
        "Q6_K        1  1,210  89.4%",
        "Q4_K        1    144  10.6%",
        "Q4_K_M: 2 tensors, 1,354 bytes, 21.16 bits per weight",
        "largest error: nrmse 0.06250, blk.0.a.weight",
        "seconds: plan 0.25, write 2.00, finish 0.12; threads: read 1.50, convert 30.2",
        "peak memory: 412 MB",
        "warning: blk.0.a.weight: expert 3 has no data.",
        "out.gguf: 4,096 bytes in 2 files, written in 34.5 s",
    ]


def test_what_was_not_measured_is_not_told(written: pg.ConversionReport) -> None:
    bare = report(tensor("a"), written=False)
    assert "nrmse" not in str(bare)
    assert not re.search("^(seconds|peak memory|warning|largest)", str(bare), re.MULTILINE)
    assert str(bare).endswith("4,096 bytes, a dry run, nothing written")
    partly = str(report(tensor("a"), tensor("b"), errors={"a": 0.5})).splitlines()
    assert partly[1].endswith("144  0.50000")
    assert partly[2].endswith("144")


def test_no_name_makes_a_line_or_steers_a_terminal() -> None:
    names = ("a\nb: 9,999 bytes", "\x1b[2J", "\u202eabc", "back\\slash", "漢字")
    hostile = report(
        *map(tensor, names), errors=dict.fromkeys(names, 0.5), warnings=("a\nb\x1b[2J: no data.",)
    )
    lines = str(hostile).splitlines()
    assert len(lines) == 1 + len(names) + 1 + 2 + 4
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith(r"a\nb: 9,999 bytes  ")
    assert lines[4].startswith(r"back\\slash")
    assert "warning: a\\nb\\x1b[2J: no data." in lines
    assert [t["name"] for t in hostile.document()["tensors"]] == list(names)


def test_reports_compare_hash_and_travel(written: pg.ConversionReport) -> None:
    assert len({report(tensor("a"), stages=STAGES), report(tensor("a"), stages=STAGES)}) == 1
    assert report(tensor("a")) != report(tensor("a"), errors={"a": 0.5})
    whole = report(tensor("a"), stages=STAGES, peak_memory=1, errors={"a": 0.5}, warnings=("b.",))
    assert pickle.loads(pickle.dumps(whole)) == whole
    again = pg.ConversionReport(**vars(whole), conversion=written.conversion)
    assert {f.name: getattr(again, f.name) for f in fields(whole)} == vars(whole)


def test_what_a_conversion_left_out_is_in_the_notes(written: pg.ConversionReport) -> None:
    plan = replace(written.conversion, notes=("vision is left out.",))
    recipe = replace(written.plan, notes=("override 'x' has no effect on any tensor",))
    told = pg.ConversionReport(**{**vars(written), "plan": recipe, "conversion": plan})
    assert told.document()["notes"] == [*plan.notes, *recipe.notes]
    for shown in (str(told), str(replace(told, written=False))):
        assert [shown.count(note) for note in told.notes] == [1, 1]


# progress -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "total", "seconds", "rate", "left"),
    [
        (0, 100, 0.0, 0.0, None),
        (0, 100, 5.0, 0.0, None),
        (25, 100, 0.0, 0.0, None),
        (25, 100, 0.5, 50.0, 1.5),
        (100, 100, 4.0, 25.0, 0.0),
        (100, 100, 0.0, 0.0, 0.0),
        (0, 0, 0.0, 0.0, 0.0),
    ],
)
def test_rate_and_time_left(
    done: int, total: int, seconds: float, rate: float, left: float | None
) -> None:
    progress = pg.Progress("quantize", done, total, "a", seconds)
    assert (progress.rate, progress.seconds_left) == (rate, left)


def test_progress_of_a_conversion(tmp_path: Path) -> None:
    seen: list[pg.Progress] = []
    made = pg.convert(NANO, tmp_path / "nano.gguf", "Q8_0", threads=1, progress=seen.append)
    names = [step.tensor for step in seen if step.done]
    assert list(dict.fromkeys(names)) == [tensor.name for tensor in made.tensors]
    seconds = [step.seconds for step in seen]
    assert 0 <= seconds[0] <= seconds[-1] <= made.seconds
    assert seconds == sorted(seconds)
    last = seen[-1]
    assert (last.done, last.seconds_left) == (last.total, 0.0)
    assert last.rate == pytest.approx(last.done / last.seconds, rel=1e-12)


def test_progress_is_equal_that_is_equally_far() -> None:
    assert pg.Progress("quantize", 1, 2, "a", 3.0) == pg.Progress("quantize", 1, 2)
    assert hash(pg.Progress("quantize", 1, 2, "a", 3.0)) == hash(pg.Progress("quantize", 1, 2))
    assert pg.Progress("quantize", 1, 2) != pg.Progress("quantize", 2, 2)
