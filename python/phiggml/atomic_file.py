"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import os
import secrets
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.atomic_file_lock import (
    TEMPORARY_PREFIX,
    FolderLock,
    kernel_mark,
    lock,
    remove_stale_files,
    unlock,
)
from phiggml.errors import InputError

__all__ = ["AtomicFile", "naming_target", "publish_together", "require_writable_name"]

# For larger single writes Linux makes room of the same size in one piece, where it can, which takes
# several times as long as filling it once memory is fragmented. Ctrl-C waits for each.
_ONE_WRITE = 128 << 10
# How much is written before the disk is set to work on it, so that it does not wait for the fsync.
_WRITE_BACK = 8 << 20
_ONE_MOVE = 8 << 20
_ZEROS = 1 << 20


def require_writable_name(target: Path, *, overwrite: bool) -> None:
    """Checks, before any work, that a file may appear under this name.

    Raises:
        FileExistsError: there is such a file, and overwrite is False.
        IsADirectoryError: it is a folder.
        InputError: it is a device, a pipe or a socket, which a rename would replace.
        FileNotFoundError: there is no such folder for it.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise InputError(f"write: {target}: it is no regular file. Choose the name of a file.")
    if not overwrite and target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))


@contextlib.contextmanager
def naming_target(target: str) -> Iterator[None]:
    """What the file system refuses is told of the target: nobody asked for the temporary file."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is not None and (
            name is None or Path(name).name.startswith(TEMPORARY_PREFIX)
        ):
            error.filename = target
        raise


class _Temporary:
    """A temporary file on the disk. It knows its name before it makes it: what is made goes.

    An exception may come at any moment. A stream that nobody got hold of closes its descriptor and
    ends its lock, which os.open and a number would not.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.stream: io.FileIO | None = None
        self._owner = os.getpid()

    def create(self, path: Path, mode: int) -> int:
        """Makes the file, which must not be there; returns its descriptor."""
        self.path = path
        try:
            # O_EXCL ("x"): never someone else's file.
            self.stream = io.FileIO(path, "x+b", opener=functools.partial(os.open, mode=mode))
        except OSError:
            self.path = None  # it was not made
            raise
        return self.stream.fileno()

    def reopen(self) -> int:
        """Opens the file again; returns its descriptor."""
        if self.path is None:
            raise ValueError("It is gone.")
        self.stream = io.FileIO(self.path, "r+b")
        return self.stream.fileno()

    def close(self) -> None:
        """Closes the file, which stays."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def remove(self) -> None:
        """Removes and closes the file. A forked child only closes it: it is its parent's."""
        try:
            if self.path is not None and os.getpid() == self._owner:
                self.path.unlink(missing_ok=True)
        finally:
            self.close()


class AtomicFile:
    """A temporary file in the target's folder, removed unless it is published under its name.

    A process that is killed leaves its temporary file behind; the next AtomicFile in the folder
    removes it.

    Args:
        folder: where the target will be.
        permissions: the bits of the file that it is to replace; until it has its name, only its
            owner may read it. None: what the umask leaves.
        leader: the file that is published after this one, in a set. Its lock is this one's too, so
            this one need not stay open.

    Attributes:
        position: where the next write goes, in bytes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        permissions: int | None = None,
        leader: AtomicFile | None = None,
    ) -> None:
        self._leader = leader
        self._permissions = permissions
        self._numbers = itertools.count()
        self._temporary = _Temporary()
        self._remove = weakref.finalize(self, self._temporary.remove)
        self.position = 0
        self._written_back = 0
        self._synced = False
        mode = 0o666 if permissions is None else 0o600
        if leader is not None:
            self._temporary.create(leader.companion_path(), mode)
        else:
            remove_stale_files(folder)
            self._create_locked(folder, mode)

    def _create_locked(self, folder: Path, mode: int) -> None:
        mark = kernel_mark()
        while True:
            path = folder / f"{TEMPORARY_PREFIX}{mark}-{secrets.token_hex(8)}.tmp"
            descriptor = self._temporary.create(path, mode)
            if not lock(descriptor):
                # Without a lock it would be taken for stale: its name must not tell.
                self._temporary.remove()
                path = folder / f"{TEMPORARY_PREFIX}unlocked-{secrets.token_hex(8)}.tmp"
                self._temporary.create(path, mode)
                return
            if os.fstat(descriptor).st_nlink > 0:
                return
            # Between the two calls somebody took it for stale.
            self._temporary.close()

    @property
    def _descriptor(self) -> int:
        stream = self._temporary.stream
        if stream is not None:
            return stream.fileno()
        descriptor = self._temporary.reopen()
        os.lseek(descriptor, self.position, os.SEEK_SET)
        return descriptor

    @property
    def _path(self) -> Path:
        if self._temporary.path is None:
            raise ValueError("AtomicFile: it was not made.")
        return self._temporary.path

    def companion_path(self) -> Path:
        """A new name of a temporary file that is stale when this one is."""
        return self._path.with_name(f"{self._path.stem}-{next(self._numbers)}.tmp")

    def write(self, data: npt.NDArray[Any] | bytes) -> None:
        """Writes the bytes of a C-contiguous array, without copying it, at the position."""
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        descriptor = self._descriptor
        self._synced = False
        while len(view) > 0:
            written = os.write(descriptor, view[:_ONE_WRITE])
            self.position += written
            view = view[written:]
            if self.position - self._written_back >= _WRITE_BACK:
                _begin_write_back(descriptor, self._written_back, self.position)
                self._written_back = self.position

    def write_zeros(self, nbytes: int) -> None:
        """Writes zeros at the position."""
        while nbytes > 0:
            block = bytes(min(nbytes, _ZEROS))
            self.write(block)
            nbytes -= len(block)

    def seek(self, position: int) -> None:
        """Moves the position; it may lie beyond the end."""
        if position != self.position:
            self.position = os.lseek(self._descriptor, position, os.SEEK_SET)
            self._written_back = position

    def resize(self, nbytes: int) -> None:
        """Cuts the file off there, or lengthens it by zeros."""
        self._synced = False
        os.ftruncate(self._descriptor, nbytes)

    def move(self, source: int, target: int, nbytes: int) -> None:
        """Moves bytes within the file; the ranges may overlap. It must be long enough for both."""
        starts = range(0, nbytes, _ONE_MOVE)
        for start in starts if target < source else reversed(starts):
            self.seek(source + start)
            block = self._read(min(_ONE_MOVE, nbytes - start))
            self.seek(target + start)
            self.write(block)

    def sync(self) -> None:
        """Makes the bytes durable."""
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def rest(self) -> None:
        """Closes the file until it is used again; one that holds a lock stays open."""
        if self._leader is not None and self._temporary.stream is not None:
            # What the disk could not take is told to those who have the file open.
            self.sync()
            self._temporary.close()

    def publish(self, target: Path, *, overwrite: bool) -> None:
        """Makes the bytes durable and gives the file its name.

        Raises:
            FileExistsError: there is a target, and overwrite is False.
        """
        publish_together([(self, target)], overwrite=overwrite)

    def rename(self, target: Path, *, overwrite: bool) -> None:
        """Gives the file its name, durable or not; see publish."""
        if self._permissions is not None:
            # A file system without permissions may refuse.
            with contextlib.suppress(PermissionError):
                self._path.chmod(self._permissions)
        if overwrite:
            self._path.replace(target)
        else:
            _rename_to_new(self._path, target)
        self._remove.detach()
        stream = self._temporary.stream
        if stream is not None:
            unlock(stream.fileno())
            # Its bytes are durable or were not asked to be.
            with contextlib.suppress(OSError):
                self._temporary.close()

    def has_name(self, target: Path) -> bool:
        """Whether it was renamed, whatever exception came in between."""
        if not target.exists():
            return False
        return not self._path.exists() or self._path.samefile(target)

    def discard(self) -> None:
        """Removes the file, unless it was published."""
        self._remove()

    def _read(self, nbytes: int) -> bytes:
        pieces = []
        while nbytes > 0:
            piece = os.read(self._descriptor, nbytes)
            if not piece:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
            self.position += len(piece)
            nbytes -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)


def publish_together(files: Sequence[tuple[AtomicFile, Path]], *, overwrite: bool) -> None:
    """Makes files durable and gives them their names, the first one last.

    From then on they are published, whatever is raised. Before that, old files of a set stand
    aside under temporary names, the first one before any other: at no moment is there a first file
    whose companions are another's. What is raised before puts them back; only a process that is
    killed just then leaves neither the old set nor the new one. No two sets get their names in
    one folder at the same time.

    Args:
        files: each with its target, all in one folder.
        overwrite: whether targets may be replaced.

    Raises:
        FileExistsError: there is a target, and overwrite is False.
        BlockingIOError: another set has been getting its names for ten seconds.
        OSError: the file system refuses; then none of the names is given.
    """
    for file, _ in files:
        file.sync()
    folder = files[0][1].parent
    if len(files) == 1:
        ((file, target),) = files
        require_writable_name(target, overwrite=overwrite)
        file.rename(target, overwrite=overwrite)
        _sync_folder(folder)
        return
    lock_of_folder = FolderLock(folder)
    try:
        lock_of_folder.acquire()
        for _, target in files:
            require_writable_name(target, overwrite=overwrite)
        _publish_set(files, folder, overwrite=overwrite)
    finally:
        lock_of_folder.release()


def _publish_set(
    files: Sequence[tuple[AtomicFile, Path]], folder: Path, *, overwrite: bool
) -> None:
    first, first_target = files[0]
    old: list[tuple[Path, Path]] = []
    try:
        if overwrite:
            _set_aside(first, [target for _, target in files], old)
            _sync_folder(folder)
        for file, target in reversed(files):
            file.rename(target, overwrite=overwrite)
    except BaseException:
        # The disk knows what was renamed; an exception may have come before a note of it.
        if not first.has_name(first_target):
            with contextlib.ExitStack() as undo:
                for target, aside in old:
                    undo.callback(_put_back, aside, target)
                for file, target in files[1:]:
                    undo.callback(_take_back, file, target)
        raise
    _sync_folder(folder)
    for _, aside in old:
        # The next writer removes what stays.
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _take_back(file: AtomicFile, target: Path) -> None:
    if file.has_name(target):
        target.unlink(missing_ok=True)


def _put_back(aside: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        aside.replace(target)


def _set_aside(first: AtomicFile, targets: list[Path], old: list[tuple[Path, Path]]) -> None:
    for target in targets:
        aside = first.companion_path()
        old.append((target, aside))
        with contextlib.suppress(FileNotFoundError):
            target.replace(aside)


if sys.platform == "linux":

    def _begin_write_back(descriptor: int, start: int, stop: int) -> None:
        """Has the disk begin with these bytes; they stay in memory until they are there."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

else:

    def _begin_write_back(descriptor: int, start: int, stop: int) -> None:
        """Elsewhere the advice means something else."""


def _rename_to_new(source: Path, target: Path) -> None:
    """Renames, but raises FileExistsError when there is such a target by now."""
    try:
        target.hardlink_to(source)
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
    except OSError as error:
        # A file system without hard links.
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.replace(target)
    else:
        # It has its name; another that stays is for the next writer to remove.
        with contextlib.suppress(OSError):
            source.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable, where folders can be synced; the file itself is already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
