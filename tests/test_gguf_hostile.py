"""Hostile containers: each ends in FormatError, or is read harmlessly; the process lives on."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
import hostile_gguf
import hostile_models
from hostile_gguf import Case
from phiggml.gguf import GGUFFile

SECONDS = 1.0  # of the processor: other work on the machine does not count
MEGABYTES = 100
CONTROLS = {"Cc", "Zl", "Zp"}  # categories of characters that a message must not hold
TIMEOUT = 300  # of all files of a test together
READER = Path(__file__).with_name("hostile_reader.py")

Verdict = dict[str, Any]
# By name and layout: the case, and what each source said about it.
Verdicts = dict[str, dict[str, tuple[Case, dict[str, Verdict]]]]


def run_reader(*arguments: object) -> list[Verdict]:
    finished = subprocess.run(
        [sys.executable, str(READER), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    lines = finished.stdout.splitlines()
    assert finished.returncode == 0, f"after {lines[-1:]}: {finished.stderr[-2000:]}"
    assert finished.stderr == ""
    return [json.loads(line) for line in lines]


def judged(folder: Path, command: str, cases: Callable[[gb.Layout], dict[str, Case]]) -> Verdicts:
    """What one process said about the cases in every layout, one after the other."""
    files = folder / "files"
    files.mkdir()
    good = folder / "good.gguf"
    good.write_bytes(
        gb.gguf([gb.strings("k", ["a", "b"])], [gb.tensor("t", (4,), gb.F32)], bytes(16))
    )
    names = {}
    for layout in hostile_gguf.LAYOUTS:
        for name, case in cases(layout).items():
            file = f"{len(names):04}.gguf"
            names[file] = (name, f"version {layout.version}, {layout.order}", case)
            case.write(files / file)
    verdicts: Verdicts = {}
    for verdict in run_reader(command, files, good):
        file, source = verdict["name"]
        name, layout_name, case = names[file]
        by_layout = verdicts.setdefault(name, {})
        by_layout.setdefault(layout_name, (case, {}))[1][source] = verdict
    assert sum(len(by_layout) for by_layout in verdicts.values()) == len(names)
    return verdicts


def check(verdicts: dict[str, tuple[Case, dict[str, Verdict]]]) -> None:
    """One case in all its layouts."""
    for layout, (case, by_source) in verdicts.items():
        for source, verdict in by_source.items():
            where = (layout, source, verdict)
            if case.refused is None:
                assert verdict["outcome"] == "accepted", where
            else:
                assert verdict["outcome"] == "FormatError", where
                assert case.refused in verdict["message"], where
                assert not {unicodedata.category(c) for c in verdict["message"]} & CONTROLS, where
                assert 0 <= verdict["offset"] <= case.nbytes, where
            if case.refused is not None and source == "path":
                assert verdict["path"].endswith(".gguf"), where
            assert verdict["seconds"] < SECONDS, where
            assert verdict["megabytes"] < MEGABYTES, where


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    return judged(tmp_path_factory.mktemp("hostile"), "cases", hostile_gguf.cases)


@pytest.fixture(scope="module")
def sparse_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    return judged(tmp_path_factory.mktemp("sparse"), "large", hostile_gguf.sparse_cases)


@pytest.fixture(scope="module")
def model_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    return judged(tmp_path_factory.mktemp("models"), "cases", hostile_models.cases)


@pytest.mark.parametrize("name", [*hostile_gguf.REFUSED, *hostile_gguf.ACCEPTED])
def test_hostile_containers(verdicts: Verdicts, name: str) -> None:
    layouts = verdicts[name]
    assert len(layouts) in (4, 6)  # what 64 bits are needed for cannot be said in version 1
    check(layouts)


def test_files_larger_than_memory(sparse_verdicts: Verdicts) -> None:
    for layouts in sparse_verdicts.values():
        check(layouts)


def test_containers_of_models_that_cannot_be(model_verdicts: Verdicts) -> None:
    assert model_verdicts.keys() == hostile_models.CHANGES.keys()
    for layouts in model_verdicts.values():
        check(layouts)


def test_the_file_that_hangs_the_gguf_package_has_49_bytes() -> None:
    assert len(hostile_gguf.cases(gb.Layout())["array of 2^63 u8"].content) == 49


@dataclass(frozen=True)
class Small:
    path: Path
    content: bytes
    data_offset: int
    end: int  # of the last tensor, without its padding


def file_of_the_gguf_package(path: Path, endianess: gguf.GGUFEndian) -> None:
    """Each kind of value, and five tensors."""
    writer = gguf.GGUFWriter(path, "phi3", endianess=endianess)
    writer.add_name("small")
    writer.add_uint8("u8", 1)
    writer.add_int64("i64", -1)
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", True)
    writer.add_custom_alignment(16)
    writer.add_token_list(["<s>", "a", "ü"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_token_types([3, 1, 1])
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 32)).astype(np.float32)
    writer.add_tensor("f32", weights[:, :3])
    writer.add_tensor("f16", weights.astype(np.float16))
    writer.add_tensor("i32", np.arange(5, dtype=np.int32))
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):
        blocks = gguf.quants.quantize(weights, kind)
        if endianess == gguf.GGUFEndian.LITTLE:
            writer.add_tensor(kind.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["little", "big", "model", "version 1"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Small:
    path = tmp_path / "small.gguf"
    if request.param in ("little", "big"):
        file_of_the_gguf_package(path, gguf.GGUFEndian[request.param.upper()])
    else:
        layout = gb.Layout(1, ">") if request.param == "version 1" else gb.Layout()
        hostile_models.cases(layout)["sound"].write(path)
    with GGUFFile(path) as file:
        end = max(tensor.offset + tensor.nbytes for tensor in file.tensors.values())
        return Small(path, path.read_bytes(), file.data_offset, end)


def test_every_truncation_of_a_small_file_at_every_byte(small: Small) -> None:
    *verdicts, peak = run_reader("truncations", small.path)
    assert [verdict["name"] for verdict in verdicts] == list(range(len(small.content)))[::-1]
    for verdict in verdicts:
        size = verdict["name"]
        if size >= small.end:  # only padding is missing
            assert verdict["outcome"] == "accepted", verdict
        else:
            assert verdict["outcome"] == "FormatError", verdict
            assert 0 <= verdict["offset"] <= size
        assert verdict["seconds"] < SECONDS
    assert peak["megabytes"] < MEGABYTES + 100  # numpy and the package are in it


def check_flips(small: Small, values: str) -> None:
    *counts, whole = run_reader("flips", small.path, small.data_offset, values)
    assert whole["outcome"] == "accepted"
    assert whole["megabytes"] < MEGABYTES + 100
    assert len(counts) == small.data_offset
    for count in counts:
        assert count.keys() <= {"name", "seconds", "accepted", "FormatError"}, count
        assert count["seconds"] < SECONDS
    assert all(any(outcome in count for count in counts) for outcome in ("accepted", "FormatError"))


def test_every_flip_of_a_bit_in_the_header_of_a_small_file(small: Small) -> None:
    check_flips(small, "bits")


@pytest.mark.slow
@pytest.mark.parametrize("small", ["little", "big"], indirect=True)
def test_every_value_of_every_byte_in_the_header_of_a_small_file(small: Small) -> None:
    check_flips(small, "all")


def test_a_crowd_of_keys_and_tensors_takes_time_in_proportion(tmp_path: Path) -> None:
    """Names that share a long beginning, which cost a sort the most, and many of them."""
    keys = [gb.number("k" * 500 + str(i), gb.UINT8, 1) for i in range(20000)]
    tensors = [gb.tensor("t" * 50 + str(i), (8,), gb.F32, offset=32 * i) for i in range(20000)]
    folder = tmp_path / "crowd"
    folder.mkdir()
    (folder / "crowd.gguf").write_bytes(gb.gguf(keys, tensors, bytes(32 * 20000)))
    good = tmp_path / "good.gguf"
    good.write_bytes(gb.gguf())
    for verdict in run_reader("large", folder, good):
        assert verdict["outcome"] == "accepted"
        assert verdict["seconds"] < SECONDS
        assert verdict["megabytes"] < MEGABYTES
