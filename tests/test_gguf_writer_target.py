"""Where files go: names that cannot be, what stands there already, and its permissions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phiggml import gguf_writer
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFWriter
from phiggml.gguf_writer_target import split_prefix

SPLIT = {"split_max_tensors": 2}


def written(path: str | Path, version: int = 1, **options: Any) -> GGUFWriter:
    """Three tensors full of the version."""
    with GGUFWriter(path, **options) as w:
        for i in range(3):
            w.add_tensor(f"t{i}", np.full(3, version, np.int32))
    return w


def version_of(path: str) -> set[int]:
    with GGUFFile(path) as file:
        assert list(file.tensors) == ["t0", "t1", "t2"]
        return {int(x) for t in file.tensors.values() for x in t.data.reshape(-1).view(np.int32)}


@pytest.mark.parametrize("name", ["", ".", "..", "./", "out/", "out/.", "out/..", "new/"])
@pytest.mark.parametrize("options", [{}, SPLIT])
def test_a_folder_is_no_name(tmp_path, monkeypatch, name, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="no name of a file"):
        GGUFWriter(name, overwrite=True, **options)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.mark.parametrize("name", [".gguf", "out/.gguf"])
def test_a_prefix_has_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="nothing stands before"):
        GGUFWriter(name, **SPLIT)


@pytest.mark.parametrize("options", [{}, SPLIT])
def test_a_path_is_text(tmp_path, options):
    with pytest.raises(InputError, match="must be str or"):
        GGUFWriter(os.fsencode(tmp_path / "m.gguf"), **options)


def test_a_prefix_that_is_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError):
        GGUFWriter(tmp_path, overwrite=True, **SPLIT)


@pytest.mark.parametrize("name", ["m", "m.gguf", "./m.gguf", "a/../m.gguf", "a/m", "a.gguf.gguf"])
def test_paths_are_what_exists(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    w = written(name, **SPLIT)
    assert len(w.paths) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.resolve() for path in map(Path, w.paths)) == sorted(files)
    prefix = split_prefix(name)
    assert [f"{prefix}-0000{i}-of-00002.gguf" for i in (1, 2)] == [
        str(Path(path).resolve()) for path in w.paths
    ]
    assert version_of(w.paths[1]) == {1}


def test_a_link_at_the_prefix_leads_nowhere_else(tmp_path):
    """Files stand beside it, in a folder that may be a link itself."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "m.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    w = written(tmp_path / "link" / "m.gguf", **SPLIT)
    assert split_prefix(tmp_path / "link" / "m.gguf") == tmp_path.resolve() / "real" / "m"
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
        "m.gguf",
    ]
    assert all(Path(path).parent == tmp_path / "link" for path in w.paths)


def test_the_current_folder_may_change(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with GGUFWriter("m.gguf", **SPLIT) as w:
        w.add_tensor("a", np.zeros(3, np.int32))
        monkeypatch.chdir(tmp_path / "other")
    assert (tmp_path / "m-00001-of-00001.gguf").is_file()


@pytest.mark.parametrize("name", ["m-00002-of-00002.gguf", "m-00007-of-00009.gguf"])
def test_parts_without_a_first_are_named_before_any_work(tmp_path, name):
    """As a writer leaves them that was killed between its renames."""
    (tmp_path / name).write_text("orphan")
    with pytest.raises(FileExistsError, match="whose first file is missing") as caught:
        GGUFWriter(tmp_path / "m.gguf", **SPLIT)
    assert caught.value.filename == str(tmp_path / name)
    w = written(tmp_path / "m.gguf", overwrite=True, **SPLIT)
    assert version_of(w.paths[0]) == {1}


def test_a_folder_with_the_name_of_a_part_stops_before_data_are_copied(tmp_path):
    (tmp_path / "m-00002-of-00002.gguf").mkdir()
    w = GGUFWriter(tmp_path / "m.gguf", overwrite=True, **SPLIT)
    for i in range(3):
        w.add_tensor_stream(f"t{i}", (1,), "I32")
    with pytest.raises(IsADirectoryError):
        w.write_rows(np.zeros(4, np.uint8))
    assert len(list(tmp_path.iterdir())) == 1


def modes(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mode & 0o777 for entry in folder.iterdir()}


@pytest.mark.parametrize("bits", [0o600, 0o660, 0o444])
@pytest.mark.parametrize("options", [{}, SPLIT])
def test_what_replaces_a_file_has_its_permissions(tmp_path, monkeypatch, bits, options):
    path = tmp_path / "m.gguf"
    old = written(path, **options)
    for part in old.paths:
        Path(part).chmod(bits)
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    with GGUFWriter(path, overwrite=True, **options) as w:
        for i in range(3):
            w.add_tensor(f"t{i}", np.full(3, 2, np.int32))
        temporary = {name: mode for name, mode in modes(tmp_path).items() if name[0] == "."}
        assert list(temporary.values()) == [0o600] * len(old.paths)
    assert version_of(w.paths[0]) == {2}
    assert modes(tmp_path) == {Path(part).name: bits for part in old.paths}


def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        written(tmp_path / "m.gguf")
        written(tmp_path / "s.gguf", **SPLIT)
    finally:
        os.umask(before)
    assert set(modes(tmp_path).values()) == {0o640}
