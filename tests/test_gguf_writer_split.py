"""Models split into several files: names, keys and cuts as llama-gguf-split's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import phiggml as pg
from phiggml import atomic_file, gguf_part, gguf_parts, gguf_writer, gguf_writer_metadata
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFWriter

ARRAY_TYPE = gguf.GGUFValueType.ARRAY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def integers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def written(path: Path, sizes: list[int], mode: str = "held", **split: Any) -> list[str]:
    """Int32 tensors of these many elements; returns the names of the files."""
    with GGUFWriter(path, **split) as w:
        w.metadata["general.architecture"] = "phi3"
        w.metadata["split.count"] = np.uint16(77)
        if mode == "declared":
            for i, size in enumerate(sizes):
                w.add_tensor_stream(f"t{i}", (size,), "I32")
            for size in sizes:
                w.write_rows(integers(size).view(np.uint8))
        else:
            for i, size in enumerate(sizes):
                w.add_tensor(f"t{i}", integers(size))
        w.metadata["array"] = [1, 2]
    assert sorted(w.paths) == sorted(str(entry) for entry in path.parent.glob(f"{path.stem}-*"))
    return [Path(written).name for written in w.paths]


def cuts(folder: Path, names: list[str]) -> list[list[str]]:
    """The tensors of each file as the gguf package reads them; their data are looked at."""
    found = []
    for name in names:
        reader = gguf.GGUFReader(folder / name)
        for tensor in reader.tensors:
            np.testing.assert_array_equal(tensor.data, integers(len(tensor.data)))
        found.append([tensor.name for tensor in reader.tensors])
    return found


def keys(path: Path) -> list[tuple[str, Any, list[gguf.GGUFValueType]]]:
    return [
        (name, field.contents(), field.types)
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    ]


@pytest.fixture(params=["held", "declared", "streamed"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gguf_part, "_SLACK", 500)
    if request.param == "streamed":
        monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    return str(request.param)


def test_by_number_of_tensors(path, mode):
    names = written(path, [3] * 7, mode, split_max_tensors=3)
    assert names == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert cuts(path.parent, names) == [["t0", "t1", "t2"], ["t3", "t4", "t5"], ["t6"]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # 32 bytes for 8 elements or fewer: padded sizes count, and the limit itself is allowed.
        ([8, 8, 8, 8], [["t0", "t1", "t2"], ["t3"]]),
        ([1, 1, 1, 1], [["t0", "t1", "t2"], ["t3"]]),
        ([16, 9, 1], [["t0"], ["t1", "t2"]]),
        # Larger than the limit: a file of its own, first, in between and last.
        ([25, 1, 1], [["t0"], ["t1", "t2"]]),
        ([1, 100, 1], [["t0"], ["t1"], ["t2"]]),
        ([1, 1, 25], [["t0", "t1"], ["t2"]]),
    ],
)
def test_by_size(path, mode, sizes, expected):
    names = written(path, sizes, mode, split_max_bytes=96)
    assert cuts(path.parent, names) == expected


def test_by_both(path):
    names = written(path, [8, 1, 1, 1, 24, 1], split_max_bytes=96, split_max_tensors=2)
    assert cuts(path.parent, names) == [["t0", "t1"], ["t2", "t3"], ["t4"], ["t5"]]


def test_keys_have_llama_gguf_splits_types_and_order(path, mode):
    """All metadata in the first file; a split.count that was set before is replaced."""
    written(path, [1] * 3, mode, split_max_tensors=2)
    kinds = gguf.GGUFValueType
    own = [
        [
            ("split.no", number, [kinds.UINT16]),
            ("split.tensors.count", 3, [kinds.INT32]),
            ("split.count", 2, [kinds.UINT16]),
        ]
        for number in (0, 1)
    ]
    first, second = (keys(path.parent / f"model-0000{i}-of-00002.gguf") for i in (1, 2))
    padded = mode == "streamed"
    assert [key for key, _, _ in first[:padded]] == ["phiggml.padding"][:padded]
    assert first[padded:] == [
        ("general.architecture", "phi3", [kinds.STRING]),
        ("array", [1, 2], [ARRAY_TYPE, kinds.INT32]),
        *own[0],
    ]
    assert second[padded:] == own[1]


def test_the_bytes_of_llama_gguf_split(path):
    """Of what llama-gguf-split (b11549) made with --split-max-tensors 2 of the same file."""
    with GGUFWriter(path, split_max_tensors=2) as w:
        w.metadata["general.architecture"] = "phi3"
        w.metadata["split.no"] = np.uint16(9)
        w.metadata["tokens"] = ["a", "b"]
        for i in range(5):
            w.add_tensor(f"t{i}", integers(5 + i))
    digests = [hashlib.sha256(Path(part).read_bytes()).hexdigest()[:16] for part in w.paths]
    assert digests == ["1e35668346e0ba35", "50a05b1b8530f2bd", "a6063489c7a91e2b"]


def test_an_alignment_holds_in_every_file(path, mode):
    with GGUFWriter(path, split_max_tensors=1) as w:
        w.metadata["general.alignment"] = 256
        w.add_tensor("a", integers(3))
        w.add_tensor("b", integers(5))
    for part in w.paths:
        reader = gguf.GGUFReader(part)
        assert reader.alignment == 256
        assert reader.tensors[0].data_offset % 256 == 0
        np.testing.assert_array_equal(reader.tensors[0].data, integers(len(reader.tensors[0].data)))


def test_one_file_of_one_and_one_without_tensors(path):
    assert written(path, [1, 1], split_max_tensors=2) == ["model-00001-of-00001.gguf"]
    empty = path.parent / "empty"
    with GGUFWriter(empty, split_max_bytes=1) as w:
        w.metadata["k"] = 1
    assert w.paths == (f"{empty}-00001-of-00001.gguf",)
    assert keys(Path(w.paths[0]))[0][:2] == ("k", 1)


def test_rows_of_tensors_in_several_files(path, mode):
    """Arrays, declarations and rows in any order; each tensor ends up whole."""
    with GGUFWriter(path, split_max_tensors=2) as w:
        w.add_tensor_stream("t0", (4, 8), "I32")
        w.add_tensor("t1", integers(9))
        w.add_tensor_stream("t2", (40,), "I32")
        w.add_tensor("t3", integers(7))
        rows = integers(32).reshape(4, 8).view(np.uint8)
        w.write_rows(rows[:1])
        w.add_tensor("t4", integers(70))
        w.metadata["late"] = "x" * 2000
        w.write_rows(rows[1:])
        w.write_rows(integers(40).view(np.uint8))
    assert [Path(part).name[6:11] for part in w.paths] == ["00001", "00002", "00003"]
    with GGUFFile(w.paths[0]) as f:
        assert f.metadata["late"] == "x" * 2000
        sizes = {"t0": 32, "t1": 9, "t2": 40, "t3": 7, "t4": 70}
        assert list(f.tensors) == list(sizes)
        for name, size in sizes.items():
            numbers = f.tensors[name].data.reshape(-1).view(np.int32)
            np.testing.assert_array_equal(numbers, integers(size))


def test_a_split_model_answers_as_the_whole_one(nano_f16, tmp_path):
    """Through llama.cpp's own reading of split files."""
    with GGUFFile(nano_f16) as f, GGUFWriter(tmp_path / "nano.gguf", split_max_bytes=1 << 20) as w:
        w.copy_metadata(f.metadata)
        for name, tensor in f.tensors.items():
            w.add_tensor(name, tensor.data, type=tensor.type)
    assert len(w.paths) > 3
    logits = []
    for path in (nano_f16, w.paths[0]):
        with pg.Model(path) as model, pg.Session(model, n_ctx=32) as session:
            logits.append(session.eval(model.tokenize("What is the sum of 2 and 3?")))
    np.testing.assert_array_equal(*logits)


def test_a_set_of_the_name_is_not_replaced_unasked(path):
    written(path, [1] * 3, split_max_tensors=1)
    before = {entry: entry.read_bytes() for entry in path.parent.iterdir()}
    for limit in (1, 2):
        with pytest.raises(FileExistsError) as caught:
            GGUFWriter(path, split_max_tensors=limit)
        assert caught.value.filename == str(path.parent / "model-00001-of-00003.gguf")
    assert {entry: entry.read_bytes() for entry in path.parent.iterdir()} == before
    GGUFWriter(path)
    GGUFWriter(path.parent / "mode.gguf", split_max_tensors=1)


def test_a_set_that_appears_meanwhile_is_not_replaced(path):
    writer = GGUFWriter(path, split_max_tensors=1)
    for i in range(3):
        writer.add_tensor(f"t{i}", integers(3))
    theirs = path.parent / "model-00002-of-00003.gguf"
    theirs.write_text("theirs")
    with pytest.raises(FileExistsError):
        writer.close()
    assert [entry.read_text() for entry in path.parent.iterdir()] == ["theirs"]


def test_overwriting_replaces_the_set_and_leaves_others(path):
    written(path, [1] * 3, split_max_tensors=1)
    with GGUFWriter(path, split_max_tensors=2, overwrite=True) as w:
        for i in range(3):
            w.add_tensor(f"new{i}", integers(3))
    with GGUFWriter(path, split_max_tensors=1, overwrite=True) as w:
        for i in range(3):
            w.add_tensor(f"new{i}", integers(3))
    for count in (2, 3):
        with GGUFFile(path.parent / f"model-00001-of-0000{count}.gguf") as f:
            assert list(f.tensors) == ["new0", "new1", "new2"]
    assert len(list(path.parent.iterdir())) == 5


def test_a_failed_set_leaves_nothing(path, monkeypatch):
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    writer = GGUFWriter(path, split_max_tensors=1)
    writer.add_tensor("a", integers(1))
    writer.add_tensor_stream("b", (3,), "I32")
    writer.add_tensor("c", integers(1))
    assert len(list(path.parent.iterdir())) == 3
    with pytest.raises(InputError, match="'b': it lacks 12"):
        writer.close()
    assert list(path.parent.iterdir()) == []
    assert writer.paths == ()


def test_all_files_go_although_one_cannot_be_closed(path, monkeypatch):
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    writer = GGUFWriter(path, split_max_tensors=1)
    for i in range(3):
        writer.add_tensor(f"t{i}", integers(1))
    assert writer._parts is not None
    file = writer._parts.parts[1].file
    assert file is not None
    os.close(file._descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.discard()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(InputError, match="closed"):
        writer.add_tensor("t3", integers(1))


@pytest.mark.parametrize("most", [1, 2])
def test_rows_go_to_files_that_were_closed_meanwhile(path, monkeypatch, most):
    """Arrays into the last file, rows into earlier ones, in turn."""
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    monkeypatch.setattr(gguf_writer, "_MAX_OPEN", most)
    with GGUFWriter(path, split_max_tensors=1) as w:
        for i in range(6):
            w.add_tensor_stream(f"s{i}", (8, 8), "I32")
            w.add_tensor(f"t{i}", integers(50 + i))
            w.write_rows(integers(64).view(np.uint8).reshape(8, 32)[:4])
            w.add_tensor(f"u{i}", integers(60 + i))
            w.write_rows(integers(64).view(np.uint8).reshape(8, 32)[4:])
    with GGUFFile(w.paths[0]) as f:
        assert len(f.tensors) == 18
        for name, tensor in f.tensors.items():
            size = {"s": 64, "t": 50 + int(name[1]), "u": 60 + int(name[1])}[name[0]]
            np.testing.assert_array_equal(
                tensor.data.reshape(-1).view(np.int32), integers(size), name
            )


@pytest.mark.parametrize("declared", [False, True])
def test_many_files_take_few_descriptors(path, declared):
    script = """
        import resource, sys
        import numpy as np
        from phiggml import gguf_writer
        from phiggml.gguf import GGUFWriter
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        numbers = np.arange(40, dtype=np.int32)
        with GGUFWriter(sys.argv[1], split_max_tensors=1) as w:
            for i in range(120):
                if sys.argv[2] == "True":
                    w.add_tensor_stream(f"t{i}", numbers.shape, "I32")
                else:
                    w.add_tensor(f"t{i}", numbers)
            if sys.argv[2] == "True":
                for i in range(120):
                    w.write_rows(numbers.view(np.uint8))
        print(len(w.paths))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path), str(declared)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "120\n"
    names = [f"model-{i + 1:05d}-of-00120.gguf" for i in range(0, 120, 17)]
    assert cuts(path.parent, names) == [[f"t{i}"] for i in range(0, 120, 17)]
    assert len(list(path.parent.iterdir())) == 120


def test_a_folder_is_cleaned_once_for_each_writer(path, monkeypatch):
    cleaned = []
    clean = atomic_file.remove_stale_files
    monkeypatch.setattr(
        atomic_file, "remove_stale_files", lambda folder: (cleaned.append(folder), clean(folder))
    )
    written(path, [1] * 20, split_max_tensors=1)
    assert cleaned == [path.parent]


def test_split_count_has_16_bits():
    most = gguf_parts._MAX_PARTS
    assert most == np.iinfo(np.uint16).max


def test_more_files_than_the_format_counts(path, monkeypatch):
    monkeypatch.setattr(gguf_parts, "_MAX_PARTS", 3)
    writer = GGUFWriter(path, split_max_tensors=1)
    for i in range(4):
        writer.add_tensor(f"t{i}", integers(1))
    with pytest.raises(InputError, match="at most 3 files"):
        writer.close()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["split_max_bytes", "split_max_tensors"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1G"])
def test_limits_that_cannot_be(path, name, value):
    with pytest.raises(InputError, match=f"{name}: .*positive"):
        GGUFWriter(path, **{name: value})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        GGUFWriter(tmp_path / "absent" / "model.gguf", split_max_tensors=1)


def test_split_keys_are_the_ones_of_the_format():
    """As llama.cpp's own constants name them, in the gguf package."""
    assert set(gguf_writer_metadata.SPLIT_KEYS) == {
        gguf.Keys.Split.LLM_KV_SPLIT_NO,
        gguf.Keys.Split.LLM_KV_SPLIT_COUNT,
        gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT,
    }
