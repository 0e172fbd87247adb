"""Targets that convert and quantize_model cannot write, or must not: an error, and nothing left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
import phiggml as pg
from imatrix_files import Entry, sums, write_gguf
from killed_quantizers import MAX_MEMORY, OLD, TYPE, VERBS, Quantizers
from phiggml.errors import InputError
from phiggml.imatrix import read_imatrix
from phiggml.quantization import Progress, QuantizeOptions
from test_convert_reading import run
from test_gguf_writer_stream import mounted
from test_quantization_faults import WEIGHT, names, write_model


@pytest.fixture(scope="module", params=VERBS)
def quantizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantizers:
    """A verb with a source that takes dozens of chunks."""
    return Quantizers(tmp_path_factory.mktemp("targets"), request.param, 1 << 12)


# No room ------------------------------------------------------------------------------------------

NO_ROOM = """
import json, os, pathlib, resource, sys
import phiggml as pg
disk, work = pathlib.Path(sys.argv[1]), {verb}
def tmpfs(nbytes):
    with (disk / "filler").open("wb") as filler:
        status = os.statvfs(disk)
        room = status.f_bavail * status.f_frsize
        os.posix_fallocate(filler.fileno(), 0, room - nbytes)
def limit(nbytes):
    (disk / "filler").touch()
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))
said = []
(disk / "old.gguf").write_bytes(b"old")
for nbytes in range({least}, {most}, {step}):
    for name in ("new.gguf", "old.gguf"):
        {kind}(nbytes)
        try:
            work({source!r}, disk / name, {type!r}, overwrite=True, threads=2,
                 options=pg.QuantizeOptions(max_memory={max_memory}))
            ended = []
            (disk / name).unlink()
            if name == "old.gguf":
                (disk / name).write_bytes(b"old")
        except OSError as error:
            ended = [error.errno, str(error), str(error.filename)]
        assert (disk / "old.gguf").read_bytes() == b"old", nbytes
        assert sorted(os.listdir(disk)) == ["filler", "old.gguf"], (nbytes, os.listdir(disk))
        said.append([nbytes, name, ended])
print(json.dumps(said))
"""


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return mounted(folder, "pass", "size=64k").returncode == 0


@pytest.mark.parametrize("kind", ["tmpfs", "limit"])
def test_no_room(kind: str, quantizers: Quantizers, tmp_path: Path) -> None:
    """Room for none of it, for all but the last page, and between; then for all of it.

    Where no file system can be mounted, a limit of what a file may hold is all there is.
    """
    source, whole = quantizers.sources[0], len(quantizers.expected[0])
    script = NO_ROOM.format(
        verb="pg.convert" if source.is_dir() else "pg.quantize_model",
        source=str(source),
        type=TYPE,
        max_memory=MAX_MEMORY // 4,
        kind=kind,
        least=0,
        most=whole + (64 << 10),
        step=whole // 12,
    )
    if kind == "limit":
        said = run(script, tmp_path)
    elif can_mount(tmp_path):
        finished = mounted(tmp_path, script, "size=8m")
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        said = json.loads(finished.stdout)
    else:
        pytest.skip("no file system can be mounted here")
    number = errno.ENOSPC if kind == "tmpfs" else errno.EFBIG
    refused = [ended for _, _, ended in said if ended]
    assert len(refused) >= 20 and len(said) - len(refused) >= 2
    assert all(not ended for nbytes, _, ended in said if nbytes > whole + 8192)
    assert all(ended for nbytes, _, ended in said if nbytes < whole - 8192)
    for _, name, (code, sentence, path) in (one for one in said if one[2]):
        assert code == number
        assert os.strerror(number) in sentence
        assert path == str(tmp_path / name)


# Targets that cannot be ---------------------------------------------------------------------------

REFUSING = """
import contextlib, io, json, os, pathlib, sys, tempfile
import phiggml as pg
from phiggml.cli import main
def attempt(source, out):
    pg.{verb}(source, out, {type!r}, overwrite=True, threads=2)
def refused(source, out):
    before = os.listdir(out.parent)
    try:
        attempt(source, out)
    except OSError as error:
        said, name = error.strerror, error.filename
    else:
        raise AssertionError(out)
    assert os.listdir(out.parent) == before, os.listdir(out.parent)
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        code = main([{command!r}, str(source), "-o", str(out), "--type", {type!r}, "--overwrite"])
    return [said, name, code, heard.getvalue()]
source = pathlib.Path({source!r})
"""


def refusing(quantizers: Quantizers, script: str) -> str:
    """A script that has a source, and tells how API and command line refuse a target."""
    is_folder = quantizers.sources[0].is_dir()
    return REFUSING.format(
        verb="convert" if is_folder else "quantize_model",
        command="convert" if is_folder else "quantize",
        type=TYPE,
        source=str(quantizers.sources[0]),
    ) + textwrap.dedent(script)


def test_a_read_only_file_system(quantizers: Quantizers, tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("no file system can be mounted here; permissions are tried in the next test")
    script = """
        print(json.dumps(refused(source, pathlib.Path(sys.argv[1]) / "m.gguf")))
    """
    finished = mounted(tmp_path, refusing(quantizers, script), "ro")
    assert finished.returncode == 0, finished.stderr
    # Neither a warning nor a traceback of what could not be removed.
    assert finished.stderr == ""
    sentence, path, code, heard = json.loads(finished.stdout)
    assert (sentence, path) == (os.strerror(errno.EROFS), str(tmp_path / "m.gguf"))
    assert (code, heard) == (8, f"phiggml: {path}: {sentence}.\n")


def test_a_folder_that_may_not_be_written_to(quantizers: Quantizers, tmp_path: Path) -> None:
    """Nor may the source. As another user where this one may do anything."""
    script = """
        import shutil
        source = pathlib.Path(sys.argv[1]) / source.name
        attempt(source, pathlib.Path(sys.argv[2]) / "warm.gguf")
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        locked = pathlib.Path(sys.argv[1]) / "locked"
        said = {name: refused(source, locked / name) for name in ("new.gguf", "old.gguf")}
        said["hidden"] = refused(locked / "hidden", pathlib.Path(sys.argv[2]) / "m.gguf")
        attempt(source, pathlib.Path(sys.argv[2]) / "m.gguf")
        print(json.dumps(said))
    """
    # Not below pytest's folder, which other users may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder, free = Path(name), Path(name) / "free"
        source = quantizers.sources[0]
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copied = Path(copy(source, folder / source.name))
        locked, hidden = folder / "locked", folder / "locked" / "hidden"
        for path in (locked, free):
            path.mkdir()
        (locked / "old.gguf").write_bytes(OLD)
        copy(source, hidden)
        for path in sorted(hidden.rglob("*")) or [hidden]:
            path.chmod(0)
        for path in (copied, *copied.rglob("*")):
            path.chmod(0o555)
        free.chmod(0o777)
        folder.chmod(0o755)
        locked.chmod(0o555)
        try:
            said = run(refusing(quantizers, script), folder, free)
            assert (locked / "old.gguf").read_bytes() == OLD
            assert names(free) == ["m.gguf", "warm.gguf"]
            assert (free / "m.gguf").read_bytes() == quantizers.expected[0]
        finally:
            locked.chmod(0o755)
            copied.chmod(0o755)
    for name, (sentence, path, code, heard) in said.items():
        assert sentence == os.strerror(errno.EACCES)
        assert path.startswith(str(locked / name)), said
        assert (code, heard) == (8, f"phiggml: {path}: {sentence}.\n")


def test_no_place_for_a_file(quantizers: Quantizers, tmp_path: Path) -> None:
    """Refused before the first piece."""
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before, pieces = names(tmp_path), list[Progress]()
    places: dict[str, type[Exception]] = {
        "missing/m.gguf": FileNotFoundError,
        "file/m.gguf": OSError,
        "folder": IsADirectoryError,
        "file": FileExistsError,
        "x" * 300: OSError,
        "loop": OSError,
        "pipe": InputError,
    }
    for place, error in places.items():
        for overwrite in (False, True):
            if place == "file" and overwrite:
                continue
            with pytest.raises(error):
                quantizers.run(
                    quantizers.sources[0],
                    tmp_path / place,
                    overwrite=overwrite,
                    progress=pieces.append,
                )
            assert (names(tmp_path), pieces) == (before, []), place
    assert (tmp_path / "file").read_bytes() == OLD


def test_what_is_no_name_of_a_file(quantizers: Quantizers, tmp_path: Path) -> None:
    for out in (os.fsencode(tmp_path / "a"), f"{tmp_path}/a\0b", f"{tmp_path}/a.gguf/"):
        with pytest.raises(InputError, match=r"a path must be str|cannot hold NUL|no name of a f"):
            quantizers.run(quantizers.sources[0], out)  # type: ignore[arg-type]
    assert names(tmp_path) == []


@pytest.mark.parametrize("what", ["folder", "temporary file", "new target", "new folder"])
def test_a_target_that_changes_meanwhile(what: str, quantizers: Quantizers, tmp_path: Path) -> None:
    folder, changed = tmp_path / "out", list[Progress]()
    folder.mkdir()

    def change(progress: Progress) -> None:
        if progress.done < progress.total // 2 or changed:
            return
        changed.append(progress)
        if what == "folder":
            shutil.rmtree(folder)
        elif what == "temporary file":
            (path,) = folder.iterdir()
            path.unlink()
        elif what == "new target":
            (folder / "m.gguf").write_bytes(OLD)
        else:
            (folder / "m.gguf").mkdir()

    error = {"new target": FileExistsError, "new folder": IsADirectoryError}
    with pytest.raises(error.get(what, FileNotFoundError)):
        quantizers.run(quantizers.sources[0], folder / "m.gguf", progress=change)
    left = [] if "new" not in what else ["m.gguf"]
    assert (names(folder) if folder.exists() else []) == left
    if what == "new target":
        assert (folder / "m.gguf").read_bytes() == OLD


# Sources as targets -------------------------------------------------------------------------------


def ways_to_name(path: Path, folder: Path) -> Iterator[Path]:
    """Other names of a file, some of them made in the folder."""
    yield path
    yield Path(os.path.relpath(path))
    yield path.parent / ".." / path.parent.name / path.name
    for name, made in (("link", os.symlink), ("hard", os.link)):
        made(path, folder / f"{name}-{path.name}")
        yield folder / f"{name}-{path.name}"
    (folder / f"folder-{path.name}").symlink_to(path.parent)
    yield folder / f"folder-{path.name}" / path.name


@pytest.mark.parametrize("form", ["whole", "split"])
def test_a_source_is_no_target(form: str, tmp_path: Path) -> None:
    source, last = write_model(tmp_path / "source", form)
    (tmp_path / "names").mkdir()
    before = {path: path.read_bytes() for path in (source, last)}
    for out in [name for path in before for name in ways_to_name(path, tmp_path / "names")]:
        for named in before:
            for overwrite in (False, True):
                with pytest.raises(InputError, match="is the source itself"):
                    pg.quantize_model(named, out, TYPE, overwrite=overwrite)
    assert {path: path.read_bytes() for path in before} == before
    assert len(names(tmp_path / "source")) == len(before)


def test_a_file_of_the_checkpoint_is_no_target(tmp_path: Path) -> None:
    checkpoint = tmp_path / "m"
    checkpoints.write_checkpoint(checkpoint, shards=2)
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "names").mkdir()
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    assert len(before) == 9
    overwritten = []
    for path in sorted(before):
        for out in ways_to_name(path, tmp_path / "names"):
            try:
                pg.convert(checkpoint, out, TYPE, overwrite=True)
            except InputError as error:
                assert "is the source itself" in str(error)
            else:
                overwritten.append(out)
                path.write_bytes(before[path])
    assert overwritten == []
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before
    # Beside them there is room for it.
    pg.convert(checkpoint, checkpoint / "m.gguf", TYPE)
    pg.convert(checkpoint, checkpoint / "m.gguf", TYPE, overwrite=True)


def test_parts_of_a_split_source_are_no_targets(tmp_path: Path) -> None:
    """Their names come of the target's, which is none of them."""
    first, last = write_model(tmp_path / "source", "split")
    before = {path: path.read_bytes() for path in (first, last)}
    for options in (QuantizeOptions(keep_split=True), QuantizeOptions(split_max_bytes=1)):
        for overwrite in (False, True):
            out = first.with_name("m.gguf")
            with pytest.raises(InputError, match="is the source itself"):
                pg.quantize_model(first, out, TYPE, options=options, overwrite=overwrite)
    assert {path: path.read_bytes() for path in first.parent.iterdir()} == before


def test_an_imatrix_is_no_target(tmp_path: Path) -> None:
    source, _ = write_model(tmp_path / "source", "whole")
    imatrix = write_gguf(tmp_path / "imatrix.gguf", [Entry(WEIGHT, sums(4096))])
    (tmp_path / "names").mkdir()
    before = imatrix.read_bytes()
    for out in ways_to_name(imatrix, tmp_path / "names"):
        for given in (imatrix, read_imatrix(imatrix)):
            with pytest.raises(InputError, match="is the source itself"):
                pg.quantize_model(source, out, TYPE, imatrix=given, overwrite=True)
    assert imatrix.read_bytes() == before
    pg.quantize_model(source, tmp_path / "m.gguf", TYPE, imatrix=imatrix)
