"""Edits that are refused, that fail, and that somebody else gets in the way of."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

import gguf_bytes as gb
from edited_files import (
    BIG,
    DATA,
    DATA_ANYWHERE,
    LITTLE,
    edited_pairs,
    pairs,
    tensors,
    text,
)
from phiggml import gguf_edit_write
from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFValue
from phiggml.gguf_edit import edit_gguf
from phiggml.gguf_header import Header
from phiggml.progress import Progress


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.gguf"
    path.write_bytes(gb.gguf(pairs(), tensors(), DATA))
    return path


FAULTS = [
    ({"unset": ["a.coumt"]}, "'a.coumt': there is none; near it: 'a.count'"),
    ({"rename": {"nothing": "x"}}, "'nothing': there is none."),
    ({"rename": {"flag": "last"}}, "'last': there would be two of it"),
    ({"rename": {"flag": "x", "last": "x"}}, "'x': there would be two of it"),
    ({"set": {"x": 1}, "rename": {"flag": "x"}}, "'x': two edits of it"),
    ({"set": {"flag": True}, "unset": ["flag"]}, "'flag': two edits of it"),
    ({"unset": ["flag"], "rename": {"flag": "x"}}, "'flag': two edits of it"),
    ({"unset": "flag"}, "must be a collection"),
    ({"rename_tensors": {"tow": "x"}}, "tensor 'tow': there is none; near it: 'two'"),
    ({"rename_tensors": {"two": "one"}}, "tensor 'one': there would be two of it"),
    ({"rename_tensors": {"two": "x" * 64}}, "1 to 63 bytes"),
    ({"rename_tensors": {"two": ""}}, "1 to 63 bytes"),
    ({"rename_tensors": {"two": 2}}, "must be str"),
    ({"set": {"": 1}}, "1 to 65535 bytes"),
    ({"set": {"a\0b": 1}}, "NUL"),
    ({"set": {"\udcff": 1}}, "UTF-8"),
    ({"set": {"k" * 65536: 1}}, "1 to 65535 bytes"),
    ({"set": {3: 1}}, "must be str"),
    ({"rename": {"flag": "a\0b"}}, "NUL"),
    ({"set": {"general.alignment": 64}}, "general.alignment': the tensors lie where it says"),
    ({"set": {"split.count": GGUFValue(1, "UINT16")}}, "split_gguf"),
    ({"rename": {"flag": "split.no"}}, "split_gguf"),
    ({"set": {"a.count": -1}}, "outside UINT32's range"),
    ({"set": {"a.count": 1.5}}, "The key is UINT32: pass GGUFValue"),
    ({"set": {"a.count": "7"}}, "The key is UINT32: pass GGUFValue"),
    ({"set": {"a.count": True}}, "UINT32"),
    ({"set": {"a.count": [1]}}, "it is one UINT32, and the value is an array of UINT32"),
    ({"set": {"numbers": 1}}, "it is an array of INT16, and the value is one INT16"),
    ({"set": {"numbers": [70000]}}, "outside INT16's range"),
    ({"set": {"a.rate": 1e300}}, "too large for FLOAT32"),
    ({"set": {"last": 3}}, "no str"),
    ({"set": {"tokens": [3]}}, "an array of STRING: pass GGUFValue"),
    ({"set": {"flag": 1}}, "BOOL"),
    ({"set": {"new": []}}, "empty sequence"),
    ({"set": {"new": {}}}, "dict"),
    ({"set": {"new": "\ud800"}}, "lone surrogate"),
]


@pytest.mark.parametrize(("request_", "message"), FAULTS, ids=[f[1] for f in FAULTS])
def test_faults(plain: Path, request_: dict[str, Any], message: str) -> None:
    before = plain.read_bytes()
    with pytest.raises(InputError) as caught:
        edit_gguf(plain, **request_)
    assert message in str(caught.value)
    assert plain.read_bytes() == before


def test_all_faults_are_told_together(plain: Path) -> None:
    with pytest.raises(InputError) as caught:
        edit_gguf(
            plain,
            set={"a.count": -1, "new": {}},
            unset=["absent"],
            rename={"gone": "x"},
            rename_tensors={"three": "y"},
        )
    text = str(caught.value)
    assert text.startswith(f"edit_gguf: {plain}: ")
    for part in ("'a.count'", "'new'", "'absent'", "'gone'", "tensor 'three'"):
        assert part in text


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    for content in (b"", b"GGUF", b"no GGUF at all", gb.gguf(pairs(), tensors(), DATA)[:5000]):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            edit_gguf(path, set={"a": 1})
        assert path.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        edit_gguf(tmp_path / "absent.gguf", set={"a": 1})
    with pytest.raises(OSError, match=r"(?i)directory"):
        edit_gguf(tmp_path, set={"a": 1})
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        edit_gguf(tmp_path / "loop", set={"a": 1})
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://example.org/m.gguf", "Download it"),
        ("file:///m.gguf", "Download it"),
        (b"m.gguf", "must be str"),
        (3, "must be str"),
        ("a\0b", "NUL"),
    ],
)
def test_paths_that_are_none(path: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit_gguf(path, set={"a": 1})


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_may_not_be_written(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, to whom permissions mean nothing."""
    before = plain.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for dry_run in (True, False):
        with pytest.raises(PermissionError) as caught:
            edit_gguf(plain, set={"a.count": 8}, dry_run=dry_run)
        assert caught.value.filename == str(plain)
    assert plain.read_bytes() == before


def test_a_folder_that_may_not_be_written_to_is_named(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != plain.parent)
    for dry_run in (True, False):
        with pytest.raises(PermissionError) as caught:
            edit_gguf(plain, unset=["tokens"], dry_run=dry_run)
        assert caught.value.filename == str(plain.parent)
    assert edit_gguf(plain, set={"a.count": 8}).in_place


@pytest.mark.parametrize(
    ("owner", "call"), [(os, "copy_file_range"), (os, "fsync"), (Path, "replace")]
)
def test_a_failure_leaves_the_old_file_alone(
    plain: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str
) -> None:
    before = plain.read_bytes()
    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(OSError, match="No space"):
        edit_gguf(plain, set={"general.architecture": "longer"})
    assert plain.read_bytes() == before
    assert list(plain.parent.iterdir()) == [plain]


@pytest.mark.parametrize(
    "answer", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EBADF", "EPERM", "EIO", "0"]
)
def test_file_systems_that_cannot_copy_or_lock(
    plain: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def copy(*_: object) -> int:
        if answer == "0":
            return 0
        raise OSError(getattr(errno, answer), "cannot")

    def lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "cannot")

    monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(fcntl, "flock", lock)
    assert not edit_gguf(plain, set={"general.architecture": "longer"}).in_place
    new = edited_pairs({0: text("general.architecture", "longer")})
    assert plain.read_bytes() == gb.gguf(new, tensors(), DATA)


def test_a_file_that_becomes_shorter_meanwhile(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phiggml.gguf_edit_write._ONE_COPY", 100)
    before = plain.read_bytes()
    cut = before[:-70]
    with pytest.raises(FormatError, match="beyond the file") as caught:
        edit_gguf(plain, unset=["tokens"], progress=lambda _: plain.write_bytes(cut))
    assert caught.value.path == str(plain)
    assert plain.read_bytes() == cut
    assert list(plain.parent.iterdir()) == [plain]


def test_progress_and_cancelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phiggml.gguf_edit_write._ONE_COPY", 100)
    for layout in (LITTLE, BIG):
        path = tmp_path / "file.gguf"
        data = DATA_ANYWHERE[layout is BIG]
        path.write_bytes(layout.gguf(pairs(layout), tensors(layout), data))
        before = path.read_bytes()

        def cancel(_: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            edit_gguf(path, unset=["tokens"], progress=cancel)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        steps: list[Progress] = []
        edit_gguf(path, unset=["tokens"], progress=steps.append)
        assert {step.stage for step in steps} == {"rewrite"}
        assert [step.done for step in steps] == ([100, 160] if layout is LITTLE else [128, 160])
        assert {step.total for step in steps} == {160}


def test_a_lock_of_somebody_elses_is_waited_for(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phiggml.gguf_edit_write._LOCK_SECONDS", 0.1)
    with plain.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        edit_gguf(plain, set={"a.count": 8}, dry_run=True)
        with pytest.raises(BlockingIOError, match="holds a lock on it: wait") as caught:
            edit_gguf(plain, set={"a.count": 8})
        assert caught.value.filename == str(plain)
    assert edit_gguf(plain, set={"a.count": 8}).in_place


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("anew", [True, False])
def test_what_others_change_meanwhile_is_not_lost(
    plain: Path, monkeypatch: pytest.MonkeyPatch, times: int, anew: bool
) -> None:
    """Somebody edits between the plan and the lock: the edit is planned anew, some times."""
    flock = fcntl.flock
    changes = iter(range(times))
    time = plain.stat().st_mtime_ns  # clocks of file systems are coarse

    def interfere(descriptor: int, operation: int) -> None:
        for change in changes:
            pair = gb.number("a.count", gb.UINT32, 100 + change)
            new = plain.with_suffix(".new") if anew else plain
            with new.open("wb" if anew else "r+b") as file:
                file.write(gb.gguf(edited_pairs({1: pair}), tensors(), DATA))
            os.utime(new, ns=(time, time))
            new.replace(plain)
            break
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interfere)
    if times == 1:
        assert edit_gguf(plain, set={"a.rate": 2}).in_place
        new = {1: gb.number("a.count", gb.UINT32, 100), 2: gb.number("a.rate", gb.FLOAT32, 2)}
        assert plain.read_bytes() == gb.gguf(edited_pairs(new), tensors(), DATA)
    else:
        with pytest.raises(FormatError, match="changes meanwhile"):
            edit_gguf(plain, set={"a.rate": 2})


def test_a_key_that_appears_while_the_file_is_opened(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values are read at one moment, and a moment in between is another try."""
    read, others = gguf_edit_write.read_header, iter(range(1))

    def interfere(file: GGUFFile) -> Header:
        header = read(file)
        for _ in others:
            edit_gguf(plain, set={"flag": False, "z": 5})
        return header

    monkeypatch.setattr(gguf_edit_write, "read_header", interfere)
    edit_gguf(plain, set={"z": 6, "a.count": 8})
    with GGUFFile(plain) as f:
        assert [f.metadata[key] for key in ("flag", "z", "a.count")] == [False, 6, 8]


def test_a_file_that_changes_while_it_is_read(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, so that what was parsed and what is read behind it are of two moments."""
    read, times = gguf_edit_write.read_header, itertools.count(1)
    last = 1

    def interfere(file: GGUFFile) -> Header:
        header = read(file)
        if (time := next(times)) <= last:
            pair = gb.number("a.count", gb.UINT32, 100 + time)
            with plain.open("r+b") as stream:
                stream.write(gb.gguf(edited_pairs({1: pair}), tensors(), DATA))
        return header

    monkeypatch.setattr(gguf_edit_write, "read_header", interfere)
    edit_gguf(plain, set={"a.rate": 2})
    new = {1: gb.number("a.count", gb.UINT32, 101), 2: gb.number("a.rate", gb.FLOAT32, 2)}
    assert plain.read_bytes() == gb.gguf(edited_pairs(new), tensors(), DATA)
    times, last = itertools.count(1), 100
    with pytest.raises(FormatError, match="chang"):
        edit_gguf(plain, set={"a.rate": 3})
