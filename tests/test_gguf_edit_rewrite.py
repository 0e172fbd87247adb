"""Files that are written anew: what others publish meanwhile, permissions, attributes, parts."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import gguf_bytes as gb
from edited_files import BIG, DATA, edited_pairs, pairs, tensors, text
from phiggml import gguf_edit_write
from phiggml.gguf import GGUFFile
from phiggml.gguf_edit import edit_gguf
from phiggml.progress import Progress

LONGER = {"general.architecture": "longer"}
LONGER_PAIR = {0: text("general.architecture", "longer")}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.gguf"
    path.write_bytes(gb.gguf(pairs(), tensors(), DATA))
    return path


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """Two parts, of 160 and 64 bytes of data."""
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for number, path in enumerate(paths):
        own = [gb.number("split.no", gb.UINT16, number), gb.number("split.count", gb.UINT16, 2)]
        infos = [tensors(), [gb.tensor("three", (16,), gb.F32)]][number]
        data = [DATA, DATA[:64]][number]
        path.write_bytes(gb.gguf([*(pairs() if number == 0 else ()), *own], infos, data))
    return paths


BOTH = {"set": LONGER, "rename_tensors": {"three": "a longer name of the third tensor"}}


def once(do: Callable[[], object]) -> Callable[[Progress], None]:
    """A progress that does something at its first call."""
    left = [do]

    def progress(_: Progress) -> None:
        if left:
            left.pop()()

    return progress


def test_what_others_publish_meanwhile_is_edited_in_its_turn(plain: Path) -> None:
    def publish() -> None:
        new = plain.with_suffix(".new")
        pair = gb.number("a.count", gb.UINT32, 100)
        new.write_bytes(gb.gguf(edited_pairs({1: pair}), tensors(names=("uno", "due")), DATA))
        new.replace(plain)

    edit_gguf(plain, set=LONGER, progress=once(publish))
    new = edited_pairs({1: gb.number("a.count", gb.UINT32, 100)} | LONGER_PAIR)
    assert plain.read_bytes() == gb.gguf(new, tensors(names=("uno", "due")), DATA)
    assert list(plain.parent.iterdir()) == [plain]


def test_data_that_change_while_they_are_copied(plain: Path) -> None:
    new_data = bytes([255]) * 8 + DATA[8:]

    def change() -> None:
        with plain.open("r+b") as file:
            file.seek(-len(DATA), os.SEEK_END)
            file.write(new_data)
        os.utime(plain, (1, 1))

    edit_gguf(plain, set=LONGER, progress=once(change))
    assert plain.read_bytes() == gb.gguf(edited_pairs(LONGER_PAIR), tensors(), new_data)


def test_bytes_that_are_appended_between_plan_and_lock(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = plain.stat().st_mtime_ns
    locked, more = gguf_edit_write._lock, [b"more"]

    def append(descriptor: int, path: Path) -> None:
        with plain.open("ab") as file:
            file.write(more.pop() if more else b"")
        os.utime(plain, ns=(time, time))
        locked(descriptor, path)

    monkeypatch.setattr(gguf_edit_write, "_lock", append)
    edit_gguf(plain, set=LONGER)
    assert plain.read_bytes() == gb.gguf(edited_pairs(LONGER_PAIR), tensors(), DATA + b"more")


def test_converted_data_end_at_a_multiple_of_the_alignment(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(BIG.gguf(pairs(BIG), [BIG.tensor("odd", (35,), gb.I8)], DATA[128:] + b"end"))
    steps: list[Progress] = []
    done = edit_gguf(path, set={"a.count": 8}, progress=steps.append)
    new = edited_pairs({1: gb.number("a.count", gb.UINT32, 8)})
    data = DATA[128:] + b"end" + bytes(29)
    assert path.read_bytes() == gb.gguf(new, [gb.tensor("odd", (35,), gb.I8)], data)
    assert done.nbytes == path.stat().st_size
    assert [(step.done, step.total) for step in steps] == [(35, 64), (64, 64)]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_nobody_else_reads_a_file_while_it_is_written(plain: Path, mode: int) -> None:
    plain.chmod(mode)
    seen: list[int] = []

    def look(_: Progress) -> None:
        (other,) = set(plain.parent.iterdir()) - {plain}
        seen.append(stat.S_IMODE(other.stat().st_mode))

    with contextlib.suppress(PermissionError):  # of 0444, who is not root
        edit_gguf(plain, set=LONGER, progress=look)
        assert seen == [0o600]
    assert stat.S_IMODE(plain.stat().st_mode) == mode


OWNERS = {
    "root": ({"owner", "group"}, 0o664),
    "a member of the group": ({"group"}, 0o664),
    "somebody else": (set(), 0o604),
}


@pytest.mark.parametrize("who", OWNERS)
def test_owner_and_group_are_given_as_far_as_that_is_allowed(
    plain: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """The tests may run as anybody, so the calls are what is looked at."""
    allowed, mode = OWNERS[who]
    plain.chmod(0o664)
    own = plain.stat()
    given: dict[str, int] = {}
    fstat = os.fstat

    def fchown(descriptor: int, owner: int, group: int) -> None:
        assert -1 in (owner, group)
        name, number = ("owner", owner) if group == -1 else ("group", group)
        if name not in allowed:
            raise OSError(errno.EINVAL if who == "root" else errno.EPERM, "not yours")
        given[name] = number

    def other_group(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if status.st_ino == own.st_ino or "group" in given:
            return status
        return os.stat_result((*status[:5], status.st_gid + 1, *status[6:]))

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(os, "fstat", other_group)
    edit_gguf(plain, set=LONGER)
    wanted = {"owner": own.st_uid, "group": own.st_gid}
    assert given == {name: wanted[name] for name in allowed}
    assert stat.S_IMODE(plain.stat().st_mode) == mode


def test_extended_attributes_are_copied(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls: not every file system has them."""
    own = plain.stat().st_ino
    kept: dict[str, bytes] = {}

    def setxattr(descriptor: int, name: str, value: bytes) -> None:
        assert os.fstat(descriptor).st_ino != own
        if name == "security.x":
            raise PermissionError(errno.EPERM, "root's")
        kept[name] = value

    monkeypatch.setattr(os, "listxattr", lambda file: ["security.x", "user.a", "user.b"])
    monkeypatch.setattr(os, "getxattr", lambda file, name: name.encode())
    monkeypatch.setattr(os, "setxattr", setxattr)
    edit_gguf(plain, set=LONGER)
    assert kept == {"user.a": b"user.a", "user.b": b"user.b"}
    monkeypatch.setattr(os, "listxattr", lambda file: os.fstat(-1))
    assert edit_gguf(plain, unset=["tokens"]).changed == ("tokens",)


def test_other_names_of_the_file_are_told_of(plain: Path, tmp_path: Path) -> None:
    before = plain.read_bytes()
    other = tmp_path / "other.gguf"
    other.hardlink_to(plain)
    assert "other names" not in str(edit_gguf(plain, set={"a.count": 7}, dry_run=True))
    told = edit_gguf(plain, set=LONGER, dry_run=True)
    assert str(told).endswith("bytes to write; other names of the file keep the old content")
    done = edit_gguf(plain, set=LONGER)
    assert done.leaves_links_behind
    assert str(done).endswith("; other names of the file keep the old content")
    assert other.read_bytes() == before
    assert not edit_gguf(plain, unset=["tokens"]).leaves_links_behind
    other.unlink()
    other.hardlink_to(plain)
    done = edit_gguf(plain, set={"a.count": 9})
    assert (done.in_place, done.leaves_links_behind) == (True, False)
    assert other.read_bytes() == plain.read_bytes()


def test_progress_over_several_parts(split: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_edit_write, "_ONE_COPY", 100)
    steps: list[Progress] = []
    edit_gguf(split[0], **BOTH, progress=steps.append)
    assert [step.done for step in steps] == [100, 160, 224]
    assert {(step.stage, step.total) for step in steps} == {("rewrite", 224)}


@pytest.mark.parametrize("call", ["copy_file_range", "fsync"])
def test_parts_are_prepared_before_one_is_published(
    split: list[Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The disk is full when the second part is written."""
    before = [path.read_bytes() for path in split]
    done, calls = getattr(os, call), iter(range(100))

    def fail(*arguments: object) -> object:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        edit_gguf(split[0], **BOTH)
    assert [path.read_bytes() for path in split] == before
    assert sorted(split[0].parent.iterdir()) == split


def test_a_failure_after_one_part_was_published_says_so(
    split: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = split[1].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: os.fstat(-1))
        with pytest.raises(OSError, match="Bad file descriptor") as said:
            edit_gguf(split[0], **BOTH)
        assert "had been edited" not in str(said.value)
    replace, calls = Path.replace, iter(range(100))

    def fail(path: Path, target: Path) -> Path:
        if next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=f"{split[0].name} had been edited by then, this not") as said:
        edit_gguf(split[0], **BOTH)
    assert (said.value.errno, said.value.filename) == (errno.EIO, str(split[1]))
    assert split[1].read_bytes() == before
    with GGUFFile(split[0]) as f:
        assert f.metadata["general.architecture"] == "longer"
        assert "three" in f.tensors
    assert sorted(split[0].parent.iterdir()) == split
