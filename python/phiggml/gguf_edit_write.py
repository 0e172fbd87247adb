"""One file under an edit: locked, changed in place or written anew beside."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from phiggml.atomic_file import AtomicFile
from phiggml.errors import FormatError
from phiggml.gguf import GGUFFile
from phiggml.gguf_edit_plan import EditedHeader
from phiggml.gguf_header import Header, is_native, layouts, read_header
from phiggml.gguf_patch import Patch, plan_patch
from phiggml.gguf_piece import blocks_in_pieces
from phiggml.progress import Progress, ProgressCallback

__all__ = ["EditedFile", "changed_meanwhile", "locked"]

_ONE_COPY = 8 << 20
_MOST_GROWTH = 64 << 10  # of a header, into the zeros that align the data
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.02
# What file systems answer that cannot lock, or cannot copy.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


@dataclass(frozen=True)
class EditedFile:
    """A file, and what its header shall become.

    Attributes:
        path: the file, no link.
        old: its header, with as much of what aligns the data as an edit in place may fill.
        data_offset: where its data begin.
        nbytes: its size.
        native: whether `old` begins with the bytes of a Header.
        edited: the header to be; the present one until there is an edit.
        patch: how to change it in place; None when the file must be written anew.
    """

    path: Path
    old: bytes
    data_offset: int
    nbytes: int
    native: bool
    edited: EditedHeader
    patch: Patch | None = None

    @classmethod
    def opened(cls, path: Path) -> EditedFile:
        """Reads a file's header.

        Raises:
            FormatError: it is no valid GGUF, or changes meanwhile.
            OSError: it cannot be read.
        """
        with path.open("rb") as stream, GGUFFile(stream, follow_split=False) as file:
            header = read_header(file)
            native = is_native(file)
            nbytes = os.fstat(stream.fileno()).st_size
            data_offset = min(file.data_offset, nbytes)
            old = _read_at(stream.fileno(), 0, min(file.header_end + _MOST_GROWTH, data_offset))
        if native and not old.startswith(header.encode()):
            raise changed_meanwhile(os.fspath(path))
        return cls(path, old, data_offset, nbytes, native, EditedHeader(header, 0, ()))

    def with_edit(self, edited: EditedHeader) -> EditedFile:
        """The same with another header to be, and how to get there."""
        patch = None
        if self.native and edited.changed:
            patch = self._patch(self.edited.header, edited)
        return replace(self, edited=edited, patch=patch)

    @property
    def nbytes_to_write(self) -> int:
        """What the edit writes."""
        if self.patch is not None:
            return self.patch.nbytes
        return self.edited.header.data_offset + self.nbytes - self.data_offset

    def require_writable(self) -> None:
        """Checks that the file may be written to: a rename alone would replace it regardless.

        Raises:
            PermissionError: it may not.
        """
        if not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))

    def is_current(self, descriptor: int) -> bool:
        """Whether the open file is still what was read, under the same name."""
        status = os.fstat(descriptor)
        return (
            os.path.samestat(status, self.path.stat())
            and status.st_size == self.nbytes
            and _read_at(descriptor, 0, len(self.old)) == self.old
        )

    def write(self, descriptor: int, progress: ProgressCallback | None) -> None:
        """Makes the edit in the open file, or writes another that takes its name."""
        if self.patch is not None:
            self.patch.apply(descriptor)
            return
        output = _Replacement(self.path.parent)
        try:
            header = self.edited.header
            output.write(header.encode())
            output.write_zeros(header.data_offset - output.position)
            if self.native:
                data = range(self.data_offset, self.nbytes)
                _copy_data(descriptor, output, data, progress, path=self.path)
            else:
                _convert_data(descriptor, output, progress)
            output.permit_as(os.fstat(descriptor))
            output.publish(self.path, overwrite=True)
        except BaseException:
            output.discard()
            raise

    def _patch(self, old: Header, edited: EditedHeader) -> Patch | None:
        for header in layouts(old, edited.header, edited.n_added):
            new = header.encode()
            if header.data_offset == old.data_offset and len(new) <= len(self.old):
                new += bytes(len(self.old) - len(new))
                patch = plan_patch(
                    self.old, new, old_padding=old.padding(), new_padding=header.padding()
                )
                if patch is not None:
                    return patch
        return None


class _Replacement(AtomicFile):
    """A file that takes another's place, with its permissions and much of its bytes."""

    def permit_as(self, status: os.stat_result) -> None:
        """Gives it the owner and the permissions of another file, as far as that is allowed."""
        with contextlib.suppress(PermissionError):
            os.fchown(self._descriptor, status.st_uid, status.st_gid)
        os.fchmod(self._descriptor, stat.S_IMODE(status.st_mode))

    def copy_from(self, descriptor: int, offset: int, nbytes: int) -> int:
        """Appends bytes of another file, within the kernel where that can be.

        Returns:
            How many: fewer than asked for where that file ends.
        """
        copied = 0
        while copied < nbytes:
            count = self._copy_some(descriptor, offset + copied, nbytes - copied)
            if count == 0:
                break
            copied += count
        return copied

    def _copy_some(self, descriptor: int, offset: int, nbytes: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(descriptor, self._descriptor, nbytes, offset)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
            else:
                self.position += count
                return count
        block = os.pread(descriptor, nbytes, offset)
        self.write(block)
        return len(block)


def _copy_data(
    descriptor: int,
    output: _Replacement,
    data: range,
    progress: ProgressCallback | None,
    *,
    path: Path,
) -> None:
    for start in range(data.start, data.stop, _ONE_COPY):
        nbytes = min(_ONE_COPY, data.stop - start)
        if output.copy_from(descriptor, start, nbytes) < nbytes:
            raise changed_meanwhile(os.fspath(path))
        if progress is not None:
            progress(Progress("rewrite", start + nbytes - data.start, len(data)))


def _convert_data(descriptor: int, output: _Replacement, progress: ProgressCallback | None) -> None:
    """Writes tensors as little-endian bytes, each where it lay in the data."""
    begin = output.position
    with (
        os.fdopen(os.dup(descriptor), "rb") as stream,
        GGUFFile(stream, follow_split=False) as file,
    ):
        tensors = sorted(file.tensors.values(), key=lambda tensor: tensor.offset)
        done, total = 0, sum(tensor.nbytes for tensor in tensors)
        for tensor in tensors:
            output.write_zeros(begin + tensor.offset - file.data_offset - output.position)
            for _, blocks in blocks_in_pieces(tensor):
                output.write(blocks)
                done += blocks.nbytes
                if progress is not None:
                    progress(Progress("rewrite", done, total))
        output.write_zeros(-(output.position - begin) % file.alignment)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Opens a file for writing, and keeps other edits out of it.

    Yields:
        Its descriptor.

    Raises:
        BlockingIOError: somebody else has held the lock for ten seconds.
        OSError: it cannot be written to.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BlockingIOError(
                    errno.EWOULDBLOCK, "Somebody else holds a lock on it", str(path)
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
