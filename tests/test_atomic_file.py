"""Temporary files: nothing under the final name until it is whole, and who removes what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from phiggml import atomic_file
from phiggml.atomic_file import AtomicFile, publish_together, remove_stale_files


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
    mark = atomic_file._kernel_mark()
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
    locked, taken = atomic_file._lock, []

    def late(descriptor: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            remove_stale_files(tmp_path)
        locked(descriptor)

    monkeypatch.setattr(atomic_file, "_lock", late)
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
    assert seen == [
        {"part-1": "old", "part-2": "old"},
        {"part-1": "old", "part-2": "new"},
        {"part-1": "new", "part-2": "new"},
    ]
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


def test_an_existing_name_stops_the_set_before_any_is_given(tmp_path):
    (tmp_path / "part-1").write_text("theirs")
    files = written(tmp_path, ["new"] * 3)
    with pytest.raises(FileExistsError):
        publish_together(files, overwrite=False)
    assert contents(tmp_path) == {"part-1": "theirs"}
