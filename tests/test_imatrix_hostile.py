"""Files of importances that are broken, or made to break what reads them."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest

from imatrix_files import Entry, dat_end, dat_entry, sums, write_dat, write_gguf
from phiggml.errors import FormatError, InputError
from phiggml.imatrix import fitted, read_imatrix

MODEL = [("up", (4, 32)), ("experts", (3, 4, 8))]
ENTRIES = [Entry("up", sums(32), (9,)), Entry("experts", sums(3, 8), (1, 0, 2))]
ONE = dat_entry(b"up", sums(32), 3)
GREATEST = 2**31 - 1


def dat(*entries: bytes, n: int | None = None, end: bytes = b"") -> bytes:
    return struct.pack("<i", len(entries) if n is None else n) + b"".join(entries) + end


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


@contextmanager
def little_memory(most: int = 1 << 20) -> Iterator[None]:
    """No more than so many bytes at once, which is far below what the files claim."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# Content, a piece of the sentence, and the offset at fault.
BAD: dict[str, tuple[bytes, str, int]] = {
    "empty": (b"", "number of tensors takes 4 bytes, and 0 are left", 0),
    "three bytes": (bytes(3), "3 are left", 0),
    "zeros": (bytes(100), "claims importances of 0 tensors", 0),
    "text": (b"blk.0.ffn_up.weight: 1.0, 2.0", "claims", 0),
    "the other order": (struct.pack(">i", 1) + ONE, "claims", 0),
    "-1 tensors": (dat(ONE, n=-1), "claims importances of -1 tensors", 0),
    "many tensors": (dat(ONE, n=GREATEST), "claims", 0),
    "one tensor more": (dat(ONE, n=2), "4 bytes, and 0 are left", 4 + len(ONE)),
    "more tensors than any model": (dat(bytes(3 << 20), n=140_000), "claims", 0),
    "name of -1": (dat(numbers(-1) + bytes(99)), "length of a name is -1", 4),
    "no name": (dat(numbers(0) + bytes(99)), "length of a name is 0", 4),
    "endless name": (dat(numbers(GREATEST) + bytes(99)), "a name takes 2,147,483,647 bytes", 8),
    "no text": (dat(dat_entry(b"\xff\xfe", sums(4), 1)), "no text", 8),
    "control characters": (dat(dat_entry(b"a\x1b[2J", sums(4), 1)), "no text", 8),
    "NUL in a name": (dat(dat_entry(b"a\0", sums(4), 1)), "no text", 8),
    "a name twice": (dat(ONE, ONE), "'up' is there twice", 4 + len(ONE)),
    "calls below zero": (dat(dat_entry(b"up", sums(32), -1)), "number of calls is -1", 10),
    "no values": (dat(dat_entry(b"up", sums(0), 1) + bytes(9)), "number of values is 0", 14),
    "values below zero": (dat(numbers(1) + b"a" + numbers(1, -4) + bytes(9)), "values is -4", 13),
    "endless values": (
        dat(numbers(1) + b"a" + numbers(1, GREATEST) + bytes(99)), "8,589,934,588 bytes", 17,
    ),
    "chunks below zero": (dat(ONE, end=dat_end(-1, b"a")), "number of chunks is -1", 4 + len(ONE)),
    "half a number": (dat(ONE, end=bytes(3)), "chunks takes 4 bytes", 4 + len(ONE)),
    "data set of -1": (dat(ONE, end=numbers(1, -1)), "data set's name is -1", 8 + len(ONE)),
    "endless data set": (dat(ONE, end=numbers(1, GREATEST)), "2,147,483,647", 12 + len(ONE)),
    "more behind it": (dat(ONE, end=dat_end(1, b"a") + b"b"), "1 bytes follow", 13 + len(ONE)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_older_files_that_are_refused(case: str, tmp_path: Path) -> None:
    content, says, offset = BAD[case]
    path = tmp_path / "i.dat"
    path.write_bytes(content)
    with little_memory(), pytest.raises(FormatError) as raised:
        read_imatrix(path)
    assert says in str(raised.value)
    assert (raised.value.path, raised.value.offset) == (str(path), offset)


def test_every_truncation(tmp_path: Path) -> None:
    """The three sound ones are those without an end, and with its first number alone or both."""
    path = write_dat(tmp_path / "i.dat", ENTRIES, end=dat_end(3, b""))
    content, accepted = path.read_bytes(), []
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        try:
            read_imatrix(path)
            accepted.append(len(content) - size)
        except FormatError as error:
            assert error.path == str(path)
            assert error.offset is not None and 0 <= error.offset <= size
    assert accepted == [8, 4, 0]
    path = write_gguf(tmp_path / "i.gguf", ENTRIES)
    content = path.read_bytes()
    for size in range(0, len(content) - 32, 7):  # what aligns the last tensor's end may be missing
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            read_imatrix(path)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_every_byte_changed(form: str, tmp_path: Path) -> None:
    """Whatever a byte becomes: it is read, or refused in one of two ways."""
    path = tmp_path / f"i.{form}"
    if form == "gguf":
        write_gguf(path, ENTRIES, datasets=["set"])
    else:
        write_dat(path, ENTRIES, end=dat_end(3, b"set"))
    content = path.read_bytes()
    outcomes: dict[str, int] = {}
    for i in range(0, len(content), 3 if form == "gguf" else 1):
        for value in {content[i] ^ 1, content[i] ^ 128, 0, 255}:
            path.write_bytes(content[:i] + bytes([value]) + content[i + 1 :])
            try:
                fitted(path, MODEL)
                outcome = "accepted"
            except (FormatError, InputError) as error:
                assert str(path) in str(error) or "GGUF" in str(error)
                outcome = type(error).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) == {"accepted", "FormatError", "InputError"}


def test_files_of_nothing_but_size(tmp_path: Path) -> None:
    """Holes take no room on the disk, and would take gigabytes of memory."""
    old, new = tmp_path / "old.dat", tmp_path / "new.gguf"
    old.write_bytes(dat(numbers(1) + b"a" + numbers(1, 2**30)))
    os.truncate(old, 5 << 30)
    writer = gguf.GGUFWriter(new, "")
    writer.add_type("imatrix")
    n = (4 << 30) // 4 + 1
    writer.add_tensor_info("a.in_sum2", [n], np.dtype(np.float32), 4 * n)
    writer.add_tensor("a.counts", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(new, 5 << 30)
    for path in (old, new):
        with little_memory(), pytest.raises(FormatError, match=r"more than 4,294,967,296\."):
            read_imatrix(path)


def test_many_small_tensors_take_seconds_at_most(tmp_path: Path) -> None:
    entries = [dat_entry(b"%05d" % i, sums(1), 1) for i in range(1 << 17)]
    (tmp_path / "i.dat").write_bytes(dat(*entries))
    started = time.process_time()
    assert read_imatrix(tmp_path / "i.dat").n_entries == 1 << 17
    assert time.process_time() - started < 20


def changed(writer: gguf.GGUFWriter, key: str, value: object, kind: str) -> None:
    writer.kv_data[0].pop(key, None)
    writer.add_key_value(key, value, gguf.GGUFValueType[kind])


F32 = np.float32
Change = Callable[[gguf.GGUFWriter], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "no counts": (lambda w: w.add_tensor("b.in_sum2", np.ones(4, F32)), "'b'"),
    "no sums": (lambda w: w.add_tensor("b.counts", np.ones(1, F32)), "'b'"),
    "halves": (
        lambda w: [
            w.add_tensor("b.counts", np.ones(1, F32)),
            w.add_tensor("b.in_sum2", np.ones(4, np.float16)),
        ],
        "float32",
    ),
    "too few counts": (
        lambda w: [
            w.add_tensor("b.counts", np.ones((2, 1), F32)),
            w.add_tensor("b.in_sum2", np.ones((3, 4), F32)),
        ],
        "counts",
    ),
    "counts that do not divide": (
        lambda w: [
            w.add_tensor("b.counts", np.ones((2, 1), F32)),
            w.add_tensor("b.in_sum2", np.ones(5, F32)),
        ],
        "counts",
    ),
    "a signed number of chunks": (
        lambda w: changed(w, "imatrix.chunk_count", 5, "INT32"), "UINT32",
    ),
    "chunks in words": (
        lambda w: changed(w, "imatrix.chunk_count", "five", "STRING"), "UINT32",
    ),
    "chunks in a row": (
        lambda w: w.kv_data[0].pop("imatrix.chunk_count")
        and w.add_array("imatrix.chunk_count", [5]),
        "UINT32",
    ),
    "endless chunks": (
        lambda w: changed(w, "imatrix.chunk_count", 2**31, "UINT32"), "below 2^31",
    ),
    "endless data sets": (
        lambda w: w.kv_data[0].pop("imatrix.datasets")
        and w.add_array("imatrix.datasets", ["a"] * 65537),
        "65,537",
    ),
    "a model": (
        lambda w: [
            changed(w, "general.type", "model", "STRING"),
            w.kv_data[0].pop("imatrix.chunk_size"),
        ],
        "general.type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_newer_files_that_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, says = CHANGES[case]
    write = gguf.GGUFWriter.write_header_to_file

    def write_changed(writer: gguf.GGUFWriter) -> None:
        change(writer)
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_changed)
    path = write_gguf(tmp_path / "i.gguf", ENTRIES)
    with pytest.raises(FormatError) as raised:
        read_imatrix(path)
    assert says in str(raised.value) and raised.value.path == str(path)
    if "'b'" in str(raised.value):
        assert raised.value.offset is not None
        assert 0 < raised.value.offset < path.stat().st_size


def test_newer_files_of_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no tensor"):
        read_imatrix(write_gguf(tmp_path / "i.gguf", []))


def test_data_sets_that_are_no_names_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.GGUFWriter.write_header_to_file

    def write_changed(writer: gguf.GGUFWriter) -> None:
        changed(writer, "imatrix.datasets", 7, "UINT32")
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_changed)
    assert read_imatrix(write_gguf(tmp_path / "i.gguf", ENTRIES)).datasets == ()
