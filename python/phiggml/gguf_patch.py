"""Which bytes of a header are written over in place, and in which order."""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Patch", "Span", "plan_patch"]

# A killed process may leave a write undone from the end of any page on, never in the middle of one.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Span:
    """Bytes, and where in the file they belong."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Patch:
    """What turns a header into another of the same size.

    Attributes:
        before: what lies in the old header's padding: until the switch the file reads as the old.
        switch: what lies in one page, so that it is written as a whole or not at all.
        after: what lies in the new header's padding: from the switch on the file reads as the new.
    """

    before: Span | None
    switch: Span | None
    after: Span | None

    @property
    def spans(self) -> tuple[Span, ...]:
        """What to write, in this order."""
        return tuple(span for span in (self.before, self.switch, self.after) if span is not None)

    @property
    def nbytes(self) -> int:
        """How much is written."""
        return sum(len(span.data) for span in self.spans)

    def apply(self, descriptor: int, path: str) -> None:
        """Writes; each step is durable before the next begins.

        Args:
            descriptor: the open file.
            path: its name, for messages.

        Raises:
            OSError: the file system refuses. From the switch on the message says that the file may
                read as the new one.
        """
        switched = False
        try:
            for span in self.spans:
                if span is self.switch:
                    _write_at_once(descriptor, span)
                    switched = True
                else:
                    _write(descriptor, span)
                os.fsync(descriptor)
        except OSError as error:
            reason = error.strerror or str(error)
            if switched:
                reason += "; the edit was written by then and may stand: look at the file"
            raise OSError(error.errno, reason, path) from error


def plan_patch(old: bytes, new: bytes, *, old_padding: range, new_padding: range) -> Patch | None:
    """How to write `new` over `old` such that a kill at any moment leaves one of the two.

    Args:
        old: the header as it stands in the file, from its first byte to the data.
        new: what shall stand there.
        old_padding: the bytes of `old` whose values mean nothing, such as the elements of its
            padding array.
        new_padding: those of `new`.

    Returns:
        A Patch; None when the sizes differ, or when bytes that mean something differ in more than
        one page.

    Cost:
        One comparison of the two.
    """
    if len(old) != len(new):
        return None
    differing = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    in_old, in_new = _inside(differing, old_padding), _inside(differing, new_padding)
    meaningful = differing[~(in_old | in_new)]
    if meaningful.size and meaningful[0] // PAGE_BYTES != meaningful[-1] // PAGE_BYTES:
        return None
    return Patch(
        before=_span(new, differing[in_old]),
        switch=_span(new, meaningful),
        after=_span(new, differing[in_new & ~in_old]),
    )


def _write(descriptor: int, span: Span) -> None:
    view, offset = memoryview(span.data), span.offset
    while len(view) > 0:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def _write_at_once(descriptor: int, span: Span) -> None:
    """From one page of memory: two might be copied one by one, with a kill between."""
    with mmap.mmap(-1, PAGE_BYTES) as page:
        page[: len(span.data)] = span.data
        with memoryview(page) as view, view[: len(span.data)] as bytes_of_span:
            written = os.pwrite(descriptor, bytes_of_span, span.offset)
    if written != len(span.data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _inside(positions: npt.NDArray[np.int64], padding: range) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (positions >= padding.start) & (positions < padding.stop)
    return inside


def _span(new: bytes, positions: npt.NDArray[Any]) -> Span | None:
    """From the first to the last; what lies between them belongs to the same page or padding."""
    if positions.size == 0:
        return None
    first, last = int(positions[0]), int(positions[-1])
    return Span(first, new[first : last + 1])
