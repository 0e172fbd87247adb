"""Padding that verify_gguf looks at: large, with holes, in short reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import gguf_bytes as gb
import phiggml as pg
from phiggml.gguf_verify import verify_gguf
from phiggml.progress import Progress

LARGE = 1 << 22


def padded_file(path: Path, nonzero: int | None = None, *, sparse: bool = False) -> Path:
    """A tensor of 32 bytes behind padding of nearly 4 MiB, and as much behind it."""
    head = gb.header(1, 1) + gb.number("general.alignment", gb.UINT32, LARGE)
    head += gb.tensor("t", (8,), gb.F32)
    with path.open("wb") as stream:
        stream.write(head)
        if sparse:
            stream.truncate(2 * LARGE)
        else:
            stream.write(bytes(2 * LARGE - len(head)))
        if nonzero is not None:
            stream.seek(nonzero)
            stream.write(b"\7")
    return path


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "at", [4096, LARGE - 1, LARGE + 32, LARGE + (1 << 20) + 100, 2 * LARGE - 1]
)
def test_large_padding(sparse: bool, at: int, tmp_path: Path) -> None:
    path = padded_file(tmp_path / "x.gguf", at, sparse=sparse)
    (fault,) = verify_gguf(path).faults
    assert (fault.offset, "it holds 7" in fault.message) == (at, True)
    assert verify_gguf(path, data=False).ok


@pytest.mark.parametrize("sparse", [False, True])
def test_large_padding_counts_as_data(sparse: bool, tmp_path: Path) -> None:
    path = padded_file(tmp_path / "x.gguf", sparse=sparse)
    seen: list[Progress] = []
    assert verify_gguf(path, progress=seen.append).ok
    with pg.GGUFFile(path) as file:
        total = 2 * LARGE - file.header_end
    assert (seen[0].done, seen[-1].done) == (0, total)
    assert {event.total for event in seen} == {total}
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert (len(seen) > 8) is not sparse


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, nbytes: int, offset: int) -> bytes:
        read.append(nbytes)
        return pread(descriptor, nbytes, offset)

    monkeypatch.setattr(os, "pread", counting)
    path = padded_file(tmp_path / "x.gguf", sparse=True)
    assert verify_gguf(path).ok
    assert sum(read) <= 1 << 20
    read.clear()
    monkeypatch.delattr(os, "SEEK_DATA")  # as on systems that know nothing of holes
    assert verify_gguf(path).ok
    assert sum(read) > 7 << 20


def test_file_systems_that_know_nothing_of_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(22, "Invalid argument")

    path = padded_file(tmp_path / "x.gguf", LARGE - 1)
    monkeypatch.setattr(os, "lseek", refuse)
    assert [fault.offset for fault in verify_gguf(path).faults] == [LARGE - 1]


def test_short_reads_leave_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 300_000), at))
    for at in (1_000_000, LARGE - 1):
        path = padded_file(tmp_path / "x.gguf", at)
        assert [fault.offset for fault in verify_gguf(path).faults] == [at]


def test_a_file_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    path = padded_file(tmp_path / "x.gguf")

    def cut(event: Progress) -> None:
        if event.done > 0:
            os.truncate(path, LARGE // 2)

    with pytest.raises(pg.FormatError, match=r"^verify: .* shorter") as caught:
        verify_gguf(path, progress=cut)
    assert caught.value.path == str(path)


def test_padding_ends_with_the_file(tmp_path: Path) -> None:
    """The tensor's padding lacks, which is one fault and no short read."""
    path = padded_file(tmp_path / "x.gguf")
    os.truncate(path, LARGE + 32 + 5000)
    (fault,) = verify_gguf(path).faults
    assert fault.offset == LARGE + 32 + 5000
