"""Editing: the bytes that must come out, stated by struct.pack."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gguf_bytes as gb
from edited_files import (
    BIG,
    DATA,
    DATA_ANYWHERE,
    OLD,
    TOKENS,
    edited_pairs,
    pairs,
    tensors,
    text,
)
from gguf_seen import seen
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFValue
from phiggml.gguf_edit import edit_gguf


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.gguf"
    path.write_bytes(gb.gguf(pairs(), tensors(), DATA))
    return path


# What is asked for -> the pairs and the names that the file must have then, and whether in place.
EDITS: dict[str, tuple[dict[str, Any], list[bytes], tuple[str, str], bool]] = {
    "a number": (
        {"set": {"a.count": 8}},
        edited_pairs({1: gb.number("a.count", gb.UINT32, 8)}),
        ("one", "two"),
        True,
    ),
    "an int becomes the key's float": (
        {"set": {"a.rate": 2}},
        edited_pairs({2: gb.number("a.rate", gb.FLOAT32, 2)}),
        ("one", "two"),
        True,
    ),
    "another type of the same size": (
        {"set": {"a.count": GGUFValue(-1, "INT32")}},
        edited_pairs({1: gb.number("a.count", gb.INT32, -1)}),
        ("one", "two"),
        True,
    ),
    "another type": (
        {"set": {"a.count": GGUFValue(2.5, "FLOAT64")}},
        edited_pairs({1: gb.number("a.count", gb.FLOAT64, 2.5)}),
        ("one", "two"),
        False,
    ),
    "an array keeps its type": (
        {"set": {"numbers": list(range(9, 0, -1))}},
        edited_pairs({4: gb.Layout(3).numbers("numbers", gb.INT16, range(9, 0, -1))}),
        ("one", "two"),
        True,
    ),
    "an array of strings": (
        {"set": {"tokens": TOKENS[::-1]}},
        edited_pairs({3: gb.strings("tokens", TOKENS[::-1])}),
        ("one", "two"),
        False,
    ),
    "a string of the same length": (
        {"set": {"general.architecture": "phi4"}},
        edited_pairs({0: text("general.architecture", "phi4")}),
        ("one", "two"),
        True,
    ),
    "a longer string": (
        {"set": {"general.architecture": "phi3.5"}},
        edited_pairs({0: text("general.architecture", "phi3.5")}),
        ("one", "two"),
        False,
    ),
    "a shorter string behind which everything lies in one page": (
        {"set": {"last": "e"}},
        edited_pairs({6: text("last", "e")}),
        ("one", "two"),
        True,
    ),
    "a new key": (
        {"set": {"new": "\udcff text"}},
        edited_pairs({}, [gb.pair("new", gb.STRING, gb.string(b"\xff text"))]),
        ("one", "two"),
        False,
    ),
    "less": (
        {"unset": ["a.count", "flag"]},
        edited_pairs({1: None, 5: None}),
        ("one", "two"),
        False,
    ),
    "a key renamed": (
        {"rename": {"flag": "mark"}},
        edited_pairs({5: gb.number("mark", gb.BOOL, True)}),
        ("one", "two"),
        True,
    ),
    "keys exchanged": (
        {"rename": {"a.count": "a.rate", "a.rate": "a.count"}},
        edited_pairs(
            {1: gb.number("a.rate", gb.UINT32, 7), 2: gb.number("a.count", gb.FLOAT32, 0.5)}
        ),
        ("one", "two"),
        True,
    ),
    "a key in place of another": (
        {"rename": {"flag": "last"}, "unset": ["last"]},
        edited_pairs({5: gb.number("last", gb.BOOL, True), 6: None}),
        ("one", "two"),
        False,
    ),
    "a tensor renamed": (
        {"rename_tensors": {"two": "2"}},
        pairs(),
        ("one", "2"),
        True,
    ),
    "tensors exchanged": (
        {"rename_tensors": {"two": "one", "one": "two"}},
        pairs(),
        ("two", "one"),
        True,
    ),
    "everything": (
        {
            "set": {"a.rate": 1, "z": GGUFValue([], "UINT8")},
            "unset": ["tokens"],
            "rename": {"last": "first"},
            "rename_tensors": {"one": "o"},
        },
        edited_pairs(
            {2: gb.number("a.rate", gb.FLOAT32, 1), 3: None, 6: text("first", "end")},
            [gb.array("z", gb.UINT8, 0, b"")],
        ),
        ("o", "two"),
        False,
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_bytes_that_come_out(plain: Path, name: str) -> None:
    request, new_pairs, names, in_place = EDITS[name]
    inode = plain.stat().st_ino
    before = plain.read_bytes()
    told = edit_gguf(plain, **request, dry_run=True)
    assert plain.read_bytes() == before
    done = edit_gguf(plain, **request)
    assert replace(told, dry_run=False) == done
    assert done.path == str(plain)
    assert done.in_place == in_place == (plain.stat().st_ino == inode)
    assert plain.read_bytes() == gb.gguf(new_pairs, tensors(names=names), DATA)
    assert list(plain.parent.iterdir()) == [plain]
    if in_place:
        differing = [
            i for i, (a, b) in enumerate(zip(before, plain.read_bytes(), strict=True)) if a != b
        ]
        assert done.nbytes == differing[-1] - differing[0] + 1
    else:
        assert done.nbytes == plain.stat().st_size


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("layout", [OLD, BIG], ids=["version 1", "big-endian"])
def test_foreign_files_are_written_anew(tmp_path: Path, name: str, layout: gb.Layout) -> None:
    request, new_pairs, names, _ = EDITS[name]
    path = tmp_path / "foreign.gguf"
    path.write_bytes(layout.gguf(pairs(layout), tensors(layout), DATA_ANYWHERE[layout is BIG]))
    assert not edit_gguf(path, **request).in_place
    assert path.read_bytes() == gb.gguf(new_pairs, tensors(names=names), DATA)


def test_version_2_stays_version_2(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(gb.gguf(pairs(), tensors(), DATA, version=2))
    assert edit_gguf(path, set={"a.count": 8}).in_place
    assert not edit_gguf(path, set={"general.architecture": "longer"}).in_place
    new = edited_pairs(
        {1: gb.number("a.count", gb.UINT32, 8), 0: text("general.architecture", "longer")}
    )
    assert path.read_bytes() == gb.gguf(new, tensors(), DATA, version=2)


def test_nothing_to_change_writes_nothing(plain: Path) -> None:
    before = plain.stat()
    done = edit_gguf(plain, set={"a.count": 7, "last": "end"}, rename={"flag": "flag"})
    assert (done.changed, done.nbytes, done.in_place) == ((), 0, True)
    assert str(done) == f"{plain}: nothing to change"
    assert plain.stat().st_mtime_ns == before.st_mtime_ns


def test_what_it_says(plain: Path) -> None:
    told = edit_gguf(plain, set={"a.count": 8}, dry_run=True)
    assert str(told) == f"{plain}: a.count would be changed in place, 1 byte to write"
    done = edit_gguf(plain, unset=["tokens"], rename_tensors={"one": "uno"})
    assert done.changed == ("tokens", "uno")
    size = plain.stat().st_size
    assert (
        str(done)
        == f"{plain}: tokens, uno changed by writing the file anew, {size:,} bytes written"
    )


def test_a_file_without_data_or_padding(tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    content = gb.gguf([gb.number("a", gb.UINT8, 1), text("b", "xyz")])
    path.write_bytes(content.rstrip(b"\0"))
    assert edit_gguf(path, set={"a": 2}).in_place
    assert path.read_bytes()[:-1].endswith(b"xy")
    edit_gguf(path, set={"b": "a longer text than fits"})
    assert path.read_bytes() == gb.gguf(
        [gb.number("a", gb.UINT8, 2), text("b", "a longer text than fits")]
    )


def test_bytes_between_and_behind_the_tensors_stay(tmp_path: Path) -> None:
    path = tmp_path / "gaps.gguf"
    infos = [
        gb.tensor("late", (32,), gb.I8, offset=256),
        gb.tensor("early", (16,), gb.I8, offset=64),
    ]
    data = bytes(range(256)) + bytes(range(100, 132)) + b"behind the last tensor"
    path.write_bytes(gb.gguf(pairs(), infos, data))
    assert not edit_gguf(path, set={"general.architecture": "longer"}).in_place
    new = edited_pairs({0: text("general.architecture", "longer")})
    assert path.read_bytes() == gb.gguf(new, infos, data)


def test_other_alignments(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    head = [gb.number("general.alignment", gb.UINT32, 1024)]
    data = DATA[:128] + bytes(896) + DATA[128:]
    infos = [gb.tensor("one", (8, 4), gb.F32), gb.tensor("two", (32,), gb.I8, offset=1024)]
    path.write_bytes(gb.gguf([*head, *pairs()], infos, data, alignment=1024))
    assert not edit_gguf(path, unset=["tokens"]).in_place
    new = [*head, *edited_pairs({3: None})]
    assert path.read_bytes() == gb.gguf(new, infos, data, alignment=1024)
    # All of this header lies in one page, so what aligns the data takes up the difference.
    assert edit_gguf(path, set={"new": "key"}).in_place
    new.append(text("new", "key"))
    assert path.read_bytes() == gb.gguf(new, infos, data, alignment=1024)


def test_permissions_stay_and_links_are_written_through(plain: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(plain.name)
    plain.chmod(0o604)
    done = edit_gguf(link, set={"general.architecture": "longer"})
    assert (done.in_place, done.path) == (False, str(plain))
    assert link.is_symlink()
    assert stat.S_IMODE(plain.stat().st_mode) == 0o604
    assert seen(link).metadata()["general.architecture"] == "longer"


def test_an_open_file_reads_as_before(plain: Path) -> None:
    with GGUFFile(plain) as f:
        edit_gguf(plain, set={"general.architecture": "longer"})
        assert f.metadata["general.architecture"] == "phi3"
        assert f.tensors["one"].dequantize().tolist()[0][1] == 1


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for number, path in enumerate(paths):
        own = [
            gb.number("split.no", gb.UINT16, number),
            gb.number("split.tensors.count", gb.INT32, 3),
            gb.number("split.count", gb.UINT16, 2),
        ]
        infos = [tensors(), [gb.tensor("three", (8,), gb.F32)]][number]
        data = [DATA, DATA[:32]][number]
        path.write_bytes(gb.gguf([*(pairs() if number == 0 else ()), *own], infos, data))
    return paths


@pytest.mark.parametrize("given", [0, 1])
def test_split_models(split: list[Path], given: int) -> None:
    before = [path.read_bytes() for path in split]
    done = edit_gguf(split[given], set={"a.count": 8})
    assert (done.path, done.paths) == (str(split[0]), (str(split[0]),))
    assert split[1].read_bytes() == before[1]
    done = edit_gguf(split[given], rename_tensors={"three": "drei"})
    assert (done.path, done.in_place) == (str(split[1]), True)
    done = edit_gguf(split[given], unset=["tokens"], rename_tensors={"drei": "3", "one": "1"})
    assert done.paths == tuple(map(str, split))
    assert done.changed == ("tokens", "1", "3")
    assert " and 1 more: " in str(done)
    with GGUFFile(split[given]) as f:
        assert f.metadata["a.count"] == 8
        assert "tokens" not in f.metadata
        assert {name: Path(tensor.path) for name, tensor in f.tensors.items()} == {
            "1": split[0],
            "two": split[0],
            "3": split[1],
        }
        assert f.tensors["3"].dequantize().tolist() == list(range(8))
    for key in ("split.no", "split.count", "split.tensors.count"):
        with pytest.raises(InputError, match="split_gguf"):
            edit_gguf(split[given], unset=[key])
    with pytest.raises(InputError, match="another part"):
        edit_gguf(split[given], rename_tensors={"two": "3", "3": "two"})


@pytest.mark.parametrize("count", [0, 1, None])
def test_what_is_left_of_split_keys_in_a_whole_file_may_be_unset(
    tmp_path: Path, count: int | None
) -> None:
    path = tmp_path / "merged.gguf"
    own = [gb.number("split.no", gb.UINT16, 0), gb.number("split.tensors.count", gb.INT32, 2)]
    if count is not None:
        own.append(gb.number("split.count", gb.UINT16, count))
    path.write_bytes(gb.gguf([*pairs(), *own], tensors(), DATA))
    keys = ["split.no", "split.tensors.count", "split.count"][: len(own)]
    with pytest.raises(InputError, match="split_gguf"):
        edit_gguf(path, rename={keys[0]: "split.x"})
    with pytest.raises(InputError, match="split_gguf"):
        edit_gguf(path, set={"split.count": GGUFValue(2, "UINT16")})
    edit_gguf(path, unset=keys)
    assert path.read_bytes() == gb.gguf(pairs(), tensors(), DATA)
