"""Temporary files: nothing under the final name until it is whole, and who removes what."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from phiggml import atomic_file, atomic_file_lock
from phiggml.atomic_file import AtomicFile, publish_together
from phiggml.atomic_file_lock import FolderLock, kernel_mark, remove_stale_files


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], given: str = "") -> str:
    out, err = process.communicate(given, timeout=60)
    assert process.returncode == 0, err
    return out


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


HOLD = """
    import sys
    from pathlib import Path
    from phiggml.atomic_file import AtomicFile
    file = AtomicFile(Path(sys.argv[1]))
    file.write(b"unfinished")
    print("ready", flush=True)
    sys.stdin.readline()
    file.publish(Path(sys.argv[1]) / "published", overwrite=False)
"""


def test_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead, alive = start(HOLD, tmp_path), start(HOLD, tmp_path)
    for process in (dead, alive):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    own = AtomicFile(tmp_path)
    assert len(names(tmp_path)) == 3
    dead.kill()
    dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    remove_stale_files(tmp_path)
    assert len(names(tmp_path)) == 2
    finish(alive, "\n")
    assert (tmp_path / "published").read_bytes() == b"unfinished"
    own.discard()
    assert names(tmp_path) == ["published"]


def test_a_stale_file_goes_although_it_is_read_only(tmp_path):
    process = start(HOLD, tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    (left,) = tmp_path.iterdir()
    left.chmod(0o444)
    AtomicFile(tmp_path).discard()
    assert names(tmp_path) == []


def test_what_looks_like_a_temporary_file_and_is_none_stays(tmp_path):
    """Those of another kernel, of another form, and what is no file."""
    mark = kernel_mark()
    other = f"{int(mark, 16) ^ 1:08x}"
    digits = "0123456789abcdef"
    kept = [
        f".phiggml-{other}-{digits}.tmp",
        f".phiggml-{digits}.tmp",
        f".phiggml-{mark}-{digits}.tmp.gguf",
        f".phiggml-{mark}-{digits[:-1]}.tmp",
        f"a.phiggml-{mark}-{digits}.tmp",
        f".phiggml-{mark}-{digits.upper()}.tmp",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f".phiggml-{mark}-{'1' * 16}.tmp").mkdir()
    (tmp_path / f".phiggml-{mark}-{'2' * 16}.tmp").symlink_to(tmp_path / kept[0])
    os.mkfifo(tmp_path / f".phiggml-{mark}-{'3' * 16}.tmp")
    before = names(tmp_path)
    (tmp_path / f".phiggml-{mark}-{digits}.tmp").write_bytes(b"stale")
    remove_stale_files(tmp_path)
    assert names(tmp_path) == before


def test_a_file_that_is_taken_for_stale_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    locked, taken = atomic_file.lock, []

    def late(descriptor: int) -> bool:
        if not taken:
            taken.extend(tmp_path.iterdir())
            remove_stale_files(tmp_path)
        return locked(descriptor)

    monkeypatch.setattr(atomic_file, "lock", late)
    file = AtomicFile(tmp_path)
    file.write(b"whole")
    file.publish(tmp_path / "published", overwrite=False)
    assert len(taken) == 1
    assert names(tmp_path) == ["published"]
    assert (tmp_path / "published").read_bytes() == b"whole"


def test_processes_that_write_in_one_folder_do_not_harm_each_other(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from phiggml.atomic_file import AtomicFile
        folder, own = Path(sys.argv[1]), sys.argv[2]
        for i in range(150):
            given_up, file = AtomicFile(folder), AtomicFile(folder)
            file.write(f"{own} {i}".encode())
            file.rename(folder / f"{own}-{i}", overwrite=bool(i % 2))
            given_up.discard()
    """
    processes = [start(script, tmp_path, own) for own in "ab"]
    for process in processes:
        finish(process)
    found = {entry.name: entry.read_text() for entry in tmp_path.iterdir()}
    assert found == {f"{own}-{i}": f"{own} {i}" for own in "ab" for i in range(150)}


def test_a_forked_child_leaves_its_parents_file(tmp_path):
    script = """
        import os, sys
        from pathlib import Path
        from phiggml.atomic_file import AtomicFile
        folder = Path(sys.argv[1])
        file = AtomicFile(folder)
        file.write(b"whole")
        child = os.fork()
        if child == 0:
            del file
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        file.publish(folder / "published", overwrite=False)
    """
    finish(start(script, tmp_path))
    assert names(tmp_path) == ["published"]


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (10, 3000), (3000, 10), (5, 5)])
def test_bytes_move_within_the_file(tmp_path, monkeypatch, step, source, target):
    monkeypatch.setattr(atomic_file, "_ONE_MOVE", step)
    data = np.random.default_rng(1).integers(0, 256, 5000, np.uint8)
    file = AtomicFile(tmp_path)
    file.write(data)
    expected = data.copy()
    expected[target : target + 1900] = data[source : source + 1900]
    file.move(source, target, 1900)
    file.publish(tmp_path / "moved", overwrite=False)
    assert (tmp_path / "moved").read_bytes() == expected.tobytes()


@pytest.mark.parametrize(("one", "back"), [(7, 100), (100, 7), (50, 50), (1 << 20, 1)])
def test_large_arrays_are_written_in_pieces(tmp_path, monkeypatch, one, back):
    """And the disk is told of all bytes, each once, but for what is left at the end."""
    monkeypatch.setattr(atomic_file, "_ONE_WRITE", one)
    monkeypatch.setattr(atomic_file, "_WRITE_BACK", back)
    told = []
    begin = atomic_file._begin_write_back

    def watched(descriptor: int, start: int, stop: int) -> None:
        told.append((start, stop))
        begin(descriptor, start, stop)

    monkeypatch.setattr(atomic_file, "_begin_write_back", watched)
    data = np.random.default_rng(2).integers(0, 256, 1003, np.uint8)
    file = AtomicFile(tmp_path)
    for piece in np.array_split(data, 3):
        file.write(piece)
    file.publish(tmp_path / "a", overwrite=False)
    assert (tmp_path / "a").read_bytes() == data.tobytes()
    assert [start for start, _ in told] == [0, *(stop for _, stop in told[:-1])]
    assert 1003 - back < told[-1][1] <= 1003


def test_the_disk_is_told_of_bytes_after_a_seek_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_file, "_WRITE_BACK", 100)
    told = []
    monkeypatch.setattr(
        atomic_file, "_begin_write_back", lambda descriptor, *span: told.append(span)
    )
    file = AtomicFile(tmp_path)
    file.write(bytes(50))
    file.seek(5000)
    file.write(bytes(60))
    assert told == []
    file.write(bytes(60))
    assert told == [(5000, 5120)]
    file.seek(1000)
    file.write(bytes(100))
    assert told[1:] == [(1000, 1100)]


def test_writes_seeks_and_sizes(tmp_path):
    file = AtomicFile(tmp_path)
    file.seek(5)
    file.write(np.array([[1, 2], [3, 4]], np.uint16))
    file.write(b"ab")
    assert file.position == 15
    file.seek(0)
    file.write_zeros(2)
    assert file.position == 2
    file.resize(14)
    file.publish(tmp_path / "a", overwrite=False)
    assert (tmp_path / "a").read_bytes() == bytes(5) + b"\1\0\2\0\3\0\4\0a"


def written(folder: Path, texts: list[str]) -> list[tuple[AtomicFile, Path]]:
    files = []
    for i, text in enumerate(texts):
        file = AtomicFile(folder)
        file.write(text.encode())
        files.append((file, folder / f"part-{i}"))
    return files


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name[0] != "."}


def test_a_set_appears_with_its_first_file_last(tmp_path, monkeypatch):
    """At every step: no first file beside another set's."""
    for i in range(3):
        (tmp_path / f"part-{i}").write_text("old")
    seen = []
    rename = AtomicFile.rename

    def watched(self: AtomicFile, target: Path, *, overwrite: bool) -> None:
        seen.append(contents(tmp_path))
        rename(self, target, overwrite=overwrite)

    monkeypatch.setattr(AtomicFile, "rename", watched)
    publish_together(written(tmp_path, ["new"] * 3), overwrite=True)
    assert seen == [{}, {"part-2": "new"}, {"part-1": "new", "part-2": "new"}]
    assert contents(tmp_path) == dict.fromkeys(["part-0", "part-1", "part-2"], "new")
    assert names(tmp_path) == ["part-0", "part-1", "part-2"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_name_that_cannot_be_given_takes_back_the_others(tmp_path, monkeypatch, failing):
    """Somebody makes a file of the name after the check."""
    rename = AtomicFile.rename

    def racing(self: AtomicFile, target: Path, *, overwrite: bool) -> None:
        if target.name == f"part-{failing}":
            target.write_text("theirs")
        rename(self, target, overwrite=overwrite)

    monkeypatch.setattr(AtomicFile, "rename", racing)
    files = written(tmp_path, ["new"] * 3)
    with pytest.raises(FileExistsError):
        publish_together(files, overwrite=False)
    for file, _ in files:
        file.discard()
    assert contents(tmp_path) == {f"part-{failing}": "theirs"}
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("there", [(0, 1, 2), (1,), (0, 2)])
def test_a_set_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch, failing, there):
    for i in there:
        (tmp_path / f"part-{i}").write_text("old")
    before = contents(tmp_path)
    rename = AtomicFile.rename

    def refused(self: AtomicFile, target: Path, *, overwrite: bool) -> None:
        if target.name == f"part-{failing}":
            raise OSError(5, "refused", str(target))
        rename(self, target, overwrite=overwrite)

    monkeypatch.setattr(AtomicFile, "rename", refused)
    files = written(tmp_path, ["new"] * 3)
    with pytest.raises(OSError, match="refused"):
        publish_together(files, overwrite=True)
    for file, _ in files:
        file.discard()
    assert contents(tmp_path) == before
    assert names(tmp_path) == sorted(before)


@pytest.mark.parametrize("count", [1, 3])
def test_the_folder_is_synced_before_and_after_the_first_name(tmp_path, monkeypatch, count):
    """Else a disk that loses its power could keep an old first file beside new companions."""
    for i in range(count):
        (tmp_path / f"part-{i}").write_text("old")
    synced = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(contents(tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    publish_together(written(tmp_path, ["new"] * count), overwrite=True)
    new = {f"part-{i}": "new" for i in range(count)}
    assert synced == ([new] if count == 1 else [{}, new])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_are_durable_before_any_has_its_name(tmp_path, monkeypatch, overwrite, count):
    """All of their bytes: else a name could outlive, in a loss of power, what it is of."""
    fsync, durable = os.fsync, {}

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            assert contents(tmp_path) == {}
            durable[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", watched)
    texts = ["x" * (1000 + i) for i in range(count)]
    publish_together(written(tmp_path, texts), overwrite=overwrite)
    found = {path.stat().st_ino: path.stat().st_size for path in tmp_path.iterdir()}
    assert durable == found and sorted(found.values()) == [len(text) for text in texts]


def test_one_set_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_file_lock, "_LOCK_SECONDS", 0.05)
    (tmp_path / "part-0").write_text("old")
    held = FolderLock(tmp_path)
    held.acquire()
    files = written(tmp_path, ["new"] * 2)
    with pytest.raises(BlockingIOError, match="set of files"):
        publish_together(files, overwrite=True)
    assert contents(tmp_path) == {"part-0": "old"}
    held.release()
    publish_together(files, overwrite=True)
    assert contents(tmp_path) == {"part-0": "new", "part-1": "new"}


def test_sets_of_two_processes_do_not_mix(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from phiggml.atomic_file import AtomicFile, publish_together
        folder, own = Path(sys.argv[1]), sys.argv[2]
        for i in range(60):
            files = [(AtomicFile(folder), folder / f"part-{j}") for j in range(3)]
            for file, _ in files:
                file.write(f"{own} {i}".encode())
            publish_together(files, overwrite=True)
    """
    processes = [start(script, tmp_path, own) for own in "ab"]
    for process in processes:
        finish(process)
    found = contents(tmp_path)
    assert sorted(found) == ["part-0", "part-1", "part-2"]
    assert set(found.values()) <= {"a 59", "b 59"}
    assert len(set(found.values())) == 1
    assert names(tmp_path) == sorted(found)


def test_a_file_that_cannot_be_locked_is_not_taken_for_stale(tmp_path, monkeypatch):
    """A server of files may refuse locks now and give them to who cleans later."""
    monkeypatch.setattr(atomic_file, "lock", lambda descriptor: False)
    file = AtomicFile(tmp_path)
    companion = AtomicFile(tmp_path, leader=file)
    for one in (file, companion):
        one.write(b"whole")
    monkeypatch.undo()
    remove_stale_files(tmp_path)
    assert len(names(tmp_path)) == 2
    publish_together([(file, tmp_path / "a"), (companion, tmp_path / "b")], overwrite=True)
    assert contents(tmp_path) == {"a": "whole", "b": "whole"}
    assert names(tmp_path) == ["a", "b"]


def test_no_file_of_another_is_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda nbytes: "0" * 2 * nbytes)
    file = AtomicFile(tmp_path)
    file.write(b"mine")
    with pytest.raises(FileExistsError):
        AtomicFile(tmp_path)


def test_a_name_that_is_taken_meanwhile_stays_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    file = AtomicFile(tmp_path)
    file.write(b"new")
    (tmp_path / "a").write_text("theirs")
    with pytest.raises(FileExistsError):
        file.rename(tmp_path / "a", overwrite=False)
    assert contents(tmp_path) == {"a": "theirs"}
    file.rename(tmp_path / "b", overwrite=False)
    assert contents(tmp_path) == {"a": "theirs", "b": "new"}
    assert names(tmp_path) == ["a", "b"]


def test_a_published_file_is_not_locked_by_a_forked_child(tmp_path):
    script = """
        import fcntl, os, sys
        from pathlib import Path
        from phiggml.atomic_file import AtomicFile
        path = Path(sys.argv[1]) / "published"
        file = AtomicFile(path.parent)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        file.publish(path, overwrite=False)
        with path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(write)
        os.waitpid(child, 0)
    """
    finish(start(script, tmp_path))
    assert names(tmp_path) == ["published"]


def test_a_descriptor_that_cannot_be_closed_does_not_keep_the_file(tmp_path):
    file = AtomicFile(tmp_path)
    os.close(file._descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.discard()
    assert names(tmp_path) == []


def test_companions_rest_and_go_on(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = AtomicFile(tmp_path)
    others = [AtomicFile(tmp_path, leader=first) for _ in range(5)]
    for text in (b"ab", b"cd"):
        for file in (first, *others):
            file.write(text)
            file.rest()
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    remove_stale_files(tmp_path)
    assert len(names(tmp_path)) == 6
    files = [(file, tmp_path / f"part-{i}") for i, file in enumerate((first, *others))]
    publish_together(files, overwrite=False)
    assert contents(tmp_path) == {f"part-{i}": "abcd" for i in range(6)}
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_companions_live_as_long_as_their_leader(tmp_path):
    script = HOLD.replace(
        "file.write", "other = AtomicFile(Path(sys.argv[1]), leader=file); file.write"
    )
    script = script.replace('    print("ready"', '    other.rest()\n    print("ready"')
    process = start(script, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    remove_stale_files(tmp_path)
    assert len(names(tmp_path)) == 2
    process.kill()
    process.communicate()
    (tmp_path / f".phiggml-{kernel_mark()}-{'a' * 16}-12.tmp").write_text("without a leader")
    remove_stale_files(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("bits", [0o600, 0o644, 0o400])
def test_a_file_that_replaces_another_keeps_its_permissions(tmp_path, bits):
    file = AtomicFile(tmp_path, permissions=bits)
    file.write(b"new")
    (temporary,) = tmp_path.iterdir()
    assert temporary.stat().st_mode & 0o777 == 0o600
    file.publish(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == bits


def test_an_existing_name_stops_the_set_before_any_is_given(tmp_path):
    (tmp_path / "part-1").write_text("theirs")
    files = written(tmp_path, ["new"] * 3)
    with pytest.raises(FileExistsError):
        publish_together(files, overwrite=False)
    assert contents(tmp_path) == {"part-1": "theirs"}
