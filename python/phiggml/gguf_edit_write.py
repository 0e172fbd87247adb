"""One file under an edit: locked, changed in place or written anew beside."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phiggml.errors import FormatError
from phiggml.gguf import GGUFFile, GGUFMetadata
from phiggml.gguf_edit_plan import EditedHeader
from phiggml.gguf_header import Header, is_native, layouts, read_header
from phiggml.gguf_part import aligned
from phiggml.gguf_patch import Patch, plan_patch
from phiggml.gguf_piece import blocks_in_pieces
from phiggml.gguf_replacement import Replacement
from phiggml.progress import Progress, ProgressCallback

if sys.platform != "win32":
    import fcntl

__all__ = ["EditedFile", "OriginalFile", "RewriteProgress", "changed_meanwhile", "locked"]

_ONE_COPY = 8 << 20
_MOST_GROWTH = 64 << 10  # of a header, into the zeros that align the data
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.005
# What file systems answer that cannot lock.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class OriginalFile:
    """A file before an edit.

    Attributes:
        path: the file, no link.
        status: what the file system said before it was read.
        header: its header, taken apart.
        old: the bytes of its header, with as much of what aligns the data as an edit in place may
            fill.
        data_offset: where its data begin.
        data_bytes: what they take when the file is written anew.
        native: whether `old` begins with the bytes of a Header.
    """

    path: Path
    status: os.stat_result
    header: Header
    old: bytes
    data_offset: int
    data_bytes: int
    native: bool

    @classmethod
    @contextlib.contextmanager
    def opening(cls, path: Path) -> Iterator[tuple[OriginalFile, GGUFMetadata]]:
        """Reads a file's header.

        Yields:
            The file, and its metadata as they were at the same moment.

        Raises:
            FormatError: it is no valid GGUF, or changes meanwhile.
            OSError: it cannot be read.
        """
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            with GGUFFile(stream, follow_split=False) as file:
                header, native = read_header(file), is_native(file)
                data_offset = min(file.data_offset, status.st_size)
                most = min(file.header_end + _MOST_GROWTH, data_offset)
                old = _read_at(stream.fileno(), 0, most)
                if native and not old.startswith(header.encode()):
                    raise changed_meanwhile(os.fspath(path))
                data_bytes = status.st_size - data_offset if native else _bytes_of_tensors(file)
                yield (
                    cls(path, status, header, old, data_offset, data_bytes, native),
                    file.metadata,
                )

    def is_current(self, descriptor: int) -> bool:
        """Whether the open file is still what was read, under the same name."""
        status = os.fstat(descriptor)
        return (
            os.path.samestat(status, self.path.stat())
            and (status.st_size, status.st_mtime_ns)
            == (self.status.st_size, self.status.st_mtime_ns)
            # Clocks of file systems are coarse: what the plan relies on is compared itself.
            and _read_at(descriptor, 0, len(self.old)) == self.old
        )


@dataclass(frozen=True)
class EditedFile:
    """A file, and what its header shall become.

    Attributes:
        original: the file before.
        edited: the header to be.
        patch: how to change it in place; None when the file must be written anew.
    """

    original: OriginalFile
    edited: EditedHeader
    patch: Patch | None

    @classmethod
    def planned(cls, original: OriginalFile, edited: EditedHeader) -> EditedFile:
        """Finds out how to get there."""
        patch = None
        if original.native and edited.changed:
            patch = _plan_in_place(original, edited)
        return cls(original, edited, patch)

    @property
    def path(self) -> Path:
        """The file."""
        return self.original.path

    @property
    def nbytes_to_write(self) -> int:
        """What the edit writes."""
        if self.patch is not None:
            return self.patch.nbytes
        return self.edited.header.data_offset + self.original.data_bytes

    @property
    def leaves_links_behind(self) -> bool:
        """Whether the file has other names, which will not lead to the file that is written."""
        return self.patch is None and self.original.status.st_nlink > 1

    def require_writable(self) -> None:
        """Checks that the file may be written to: a rename alone would replace it regardless.

        Raises:
            PermissionError: it may not, or nothing may be written beside it.
        """
        wanted = [(self.path, os.W_OK)]
        if self.patch is None:
            wanted.append((self.path.parent, os.W_OK | os.X_OK))
        for path, mode in wanted:
            if not os.access(path, mode):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def prepare(self, descriptor: int, progress: RewriteProgress) -> Replacement | None:
        """Writes the file that will take this one's place; None where the edit is in place."""
        if self.patch is not None:
            return None
        output = Replacement(self.path.parent)
        try:
            header = self.edited.header
            output.write(header.encode())
            output.write_zeros(header.data_offset - output.position)
            if self.original.native:
                _copy_data(descriptor, output, self.original, progress)
            else:
                _convert_data(descriptor, output, progress)
            output.sync()
        except BaseException:
            output.discard()
            raise
        return output

    def finish(self, descriptor: int, replacement: Replacement | None) -> None:
        """Changes the open file in place, or gives its name to what was prepared."""
        if replacement is not None:
            replacement.permit_as(descriptor)
            replacement.publish(self.path, overwrite=True)
        elif self.patch is not None:
            self.patch.apply(descriptor, os.fspath(self.path))


class RewriteProgress:
    """Counts what is written, over all files of an edit.

    Args:
        progress: whom to tell, if anyone.
        total: of the data, in bytes.
    """

    def __init__(self, progress: ProgressCallback | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, nbytes: int) -> None:
        """Tells that so much more has been written."""
        self._done += nbytes
        if self._progress is not None:
            self._progress(Progress("rewrite", self._done, self._total))


def _bytes_of_tensors(file: GGUFFile) -> int:
    ends = [tensor.offset + tensor.nbytes for tensor in file.tensors.values()]
    return aligned(max(ends, default=file.data_offset) - file.data_offset, file.alignment)


def _plan_in_place(original: OriginalFile, edited: EditedHeader) -> Patch | None:
    before = original.header
    for header in layouts(before, edited.header, edited.n_added):
        new = header.encode()
        if header.data_offset == before.data_offset and len(new) <= len(original.old):
            new += bytes(len(original.old) - len(new))
            patch = plan_patch(
                original.old, new, old_padding=before.padding(), new_padding=header.padding()
            )
            if patch is not None:
                return patch
    return None


def _copy_data(
    descriptor: int, output: Replacement, original: OriginalFile, progress: RewriteProgress
) -> None:
    end = original.data_offset + original.data_bytes
    for start in range(original.data_offset, end, _ONE_COPY):
        nbytes = min(_ONE_COPY, end - start)
        if output.copy_from(descriptor, start, nbytes) < nbytes:
            raise changed_meanwhile(os.fspath(original.path))
        progress.add(nbytes)


def _convert_data(descriptor: int, output: Replacement, progress: RewriteProgress) -> None:
    """Writes tensors as little-endian bytes, each where it lay in the data."""
    begin = told = output.position
    with (
        os.fdopen(os.dup(descriptor), "rb") as stream,
        GGUFFile(stream, follow_split=False) as file,
    ):
        for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.offset):
            output.write_zeros(begin + tensor.offset - file.data_offset - output.position)
            for _, blocks in blocks_in_pieces(tensor):
                output.write(blocks)
                progress.add(output.position - told)
                told = output.position
        output.write_zeros(-(output.position - begin) % file.alignment)
        if output.position > told:
            progress.add(output.position - told)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Opens a file for writing, and keeps other edits out of it.

    Yields:
        Its descriptor.

    Raises:
        BlockingIOError: somebody else has held the lock for ten seconds.
        OSError: it cannot be written to.
    """
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        _lock(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int, path: Path) -> None:
        """Nothing to do: there is no flock here."""

else:

    def _lock(descriptor: int, path: Path) -> None:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        errno.EWOULDBLOCK,
                        "somebody else holds a lock on it: wait for them, or end the program "
                        "that edits it",
                        str(path),
                    ) from error
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return
            else:
                return


def changed_meanwhile(path: str) -> FormatError:
    """What to raise when somebody else writes to the file during an edit."""
    return FormatError(
        f"edit_gguf: {path}: it changes meanwhile. Wait for who writes it.", path=path
    )


def _read_at(descriptor: int, offset: int, nbytes: int) -> bytes:
    """As many of the bytes as are there."""
    pieces = []
    while nbytes > 0:
        piece = os.pread(descriptor, nbytes, offset)
        if not piece:
            break
        offset += len(piece)
        nbytes -= len(piece)
        pieces.append(piece)
    return b"".join(pieces)
