"""The rule of writing in place: a write that stops anywhere leaves the old header or the new."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiggml.gguf_patch import Patch, Span, plan_patch

PAGE = 4096
SIZE = 5 * PAGE + 100


NOWHERE = (range(0), range(0))


def plan(old: bytes, new: bytes, paddings: tuple[range, range] = NOWHERE) -> Patch | None:
    return plan_patch(old, new, old_padding=paddings[0], new_padding=paddings[1])


def reads_as(state: bytes, header: bytes, padding: range) -> bool:
    """Whether the bytes that mean something are those of the header."""
    meaningful = np.ones(len(header), bool)
    meaningful[padding.start : padding.stop] = False
    got, wanted = np.frombuffer(state, np.uint8), np.frombuffer(header, np.uint8)
    return bool(np.array_equal(got[meaningful], wanted[meaningful]))


def states_of_a_killed_write(before: bytes, span: Span) -> Iterator[bytes]:
    """A kill leaves a write undone from the beginning of some page on."""
    end = span.offset + len(span.data)
    stops = [*range(-(-span.offset // PAGE) * PAGE, end, PAGE), end]
    for stop in [span.offset, *stops]:
        done = span.data[: stop - span.offset]
        yield before[: span.offset] + done + before[span.offset + len(done) :]


def check(patch: Patch, old: bytes, new: bytes, paddings: tuple[range, range]) -> None:
    old_padding, new_padding = paddings
    state = old
    for span in patch.spans:
        for torn in states_of_a_killed_write(state, span):
            assert reads_as(torn, old, old_padding) or reads_as(torn, new, new_padding)
        end = span.offset + len(span.data)
        state = state[: span.offset] + span.data + state[end:]
    assert state == new


ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: range(min(p), max(p)))
changes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 9000)), max_size=4)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32), ranges=st.tuples(ranges, ranges), changes=changes)
def test_a_kill_at_any_page_leaves_the_old_or_the_new(seed, ranges, changes):
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 256, SIZE, np.uint8)
    new = old.copy()
    for start, length in changes:
        new[start : start + length] ^= rng.integers(
            0, 2, new[start : start + length].size, np.uint8
        )
    patch = plan(old.tobytes(), new.tobytes(), ranges)
    if patch is not None:
        check(patch, old.tobytes(), new.tobytes(), ranges)


@settings(max_examples=80, deadline=None)
@given(
    padding=st.tuples(st.integers(100, 1000), st.integers(0, 4 * PAGE)),
    room=st.integers(0, 3000),
    page=st.integers(0, 4),
)
def test_what_can_be_in_place_is_planned(padding, room, page):
    """Differences in both paddings and within one page: there must be a plan, and it must hold."""
    old_padding = range(padding[0], padding[0] + padding[1])
    new_padding = range(padding[0] + room, padding[0] + room + padding[1])
    old = np.zeros(SIZE, np.uint8)
    new = old.copy()
    new[old_padding.start : old_padding.stop] = 1
    new[new_padding.start : min(new_padding.stop, SIZE)] = 2
    new[page * PAGE] = new[page * PAGE + PAGE - 1] = 3
    paddings = (old_padding, new_padding)
    patch = plan(old.tobytes(), new.tobytes(), paddings)
    assert patch is not None
    check(patch, old.tobytes(), new.tobytes(), paddings)


@pytest.mark.parametrize(
    ("first", "last", "in_place"),
    [(0, 4095, True), (4095, 4096, False), (4096, 8191, True), (10, 20480, False), (5, 5, True)],
)
def test_the_page_is_the_bound(first, last, in_place):
    old = bytearray(SIZE)
    new = bytearray(SIZE)
    new[first] = new[last] = 1
    patch = plan(bytes(old), bytes(new))
    assert (patch is not None) == in_place
    if patch is not None:
        assert patch.spans == (Span(first, bytes(new[first : last + 1])),)
    # A naive writer would take it in one go, and the check above must see that as wrong.
    naive = Patch(None, Span(first, bytes(new[first : last + 1])), None)
    if not in_place:
        with pytest.raises(AssertionError):
            check(naive, bytes(old), bytes(new), NOWHERE)


def test_sizes_must_agree_and_nothing_to_do_is_nothing():
    assert plan(b"abc", b"abcd") is None
    patch = plan(b"abc", b"abc")
    assert patch is not None
    assert (patch.spans, patch.nbytes) == ((), 0)


def test_each_step_is_durable_before_the_next(tmp_path, monkeypatch):
    log: list[object] = []
    written, synced = os.pwrite, os.fsync

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        log.append((offset, bytes(data)))
        return written(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", lambda descriptor: log.append("sync") or synced(descriptor))
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    patch = Patch(before=Span(4, b"ab"), switch=Span(1, b"c"), after=Span(8, b"de"))
    descriptor = os.open(path, os.O_RDWR)
    patch.apply(descriptor, "file")
    os.close(descriptor)
    assert log == [(4, b"ab"), "sync", (1, b"c"), "sync", (8, b"de"), "sync"]
    assert path.read_bytes() == b"0c23ab67de"
    assert patch.nbytes == 5


def test_a_short_write_of_the_page_is_an_error(monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: len(data) - 1)
    with pytest.raises(OSError, match="Errno 5"):
        Patch(None, Span(0, b"abc"), None).apply(0, "file")


def test_the_rest_is_written_piece_by_piece(tmp_path, monkeypatch):
    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written(fd, data[:2], offset))
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    with path.open("r+b") as file:
        Patch(Span(1, b"abcde"), None, Span(7, b"fgh")).apply(file.fileno(), "file")
    assert path.read_bytes() == b"\0abcde\0fgh"


def test_the_switch_is_written_from_one_page_of_memory(monkeypatch):
    pages = []

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        first = np.frombuffer(data, np.uint8).ctypes.data
        pages.append((first // PAGE, (first + len(data) - 1) // PAGE))
        return len(data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for length in (1, 4000, PAGE):
        Patch(None, Span(0, bytes(length)), None).apply(0, "file")
    assert len(pages) == 3
    assert all(first == last for first, last in pages)


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_an_error_from_the_switch_on_says_that_the_edit_may_stand(
    tmp_path, monkeypatch, call, failing
):
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    done, calls = getattr(os, call), iter(range(1, 4))

    def fail(*arguments: object) -> object:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        return done(*arguments)

    monkeypatch.setattr(os, call, fail)
    patch = Patch(before=Span(4, b"ab"), switch=Span(1, b"c"), after=Span(8, b"de"))
    with path.open("r+b") as file, pytest.raises(OSError, match="No space left") as caught:
        patch.apply(file.fileno(), "its name")
    assert (caught.value.errno, caught.value.filename) == (28, "its name")
    switched = path.read_bytes()[1:2] == b"c"
    assert ("may stand" in str(caught.value)) == switched == (failing + (call == "fsync") >= 3)
