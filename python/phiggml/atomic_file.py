"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import sys
import weakref
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = ["AtomicFile", "publish_together", "remove_stale_files", "require_writable_name"]

# Larger single writes are slower, and Ctrl-C waits for each.
_ONE_WRITE = 4 << 20
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


class AtomicFile:
    """A temporary file in the target's folder, removed unless it is published under its name.

    A process that is killed leaves its temporary file behind; the next AtomicFile in the folder
    removes it.

    Args:
        folder: where the target will be.

    Attributes:
        position: where the next write goes, in bytes.
    """

    def __init__(self, folder: Path) -> None:
        remove_stale_files(folder)
        self._folder = folder
        self._descriptor, self._path = _create_locked(folder)
        self.position = 0
        self._written_back = 0
        self._remove = weakref.finalize(
            self, _close_and_remove, self._descriptor, self._path, os.getpid()
        )

    def write(self, data: npt.NDArray[Any] | bytes) -> None:
        """Writes the bytes of a C-contiguous array, without copying it, at the position."""
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        while len(view) > 0:
            written = os.write(self._descriptor, view[:_ONE_WRITE])
            self.position += written
            view = view[written:]
            if self.position - self._written_back >= _WRITE_BACK:
                _begin_write_back(self._descriptor, self._written_back, self.position)
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
        os.fsync(self._descriptor)

    def publish(self, target: Path, *, overwrite: bool) -> None:
        """Makes the bytes durable and gives the file its name.

        Raises:
            FileExistsError: there is a target, and overwrite is False.
        """
        publish_together([(self, target)], overwrite=overwrite)

    def rename(self, target: Path, *, overwrite: bool) -> None:
        """Gives the file its name, durable or not; see publish."""
        if overwrite:
            self._path.replace(target)
        else:
            _rename_to_new(self._path, target)
        self._remove.detach()
        os.close(self._descriptor)

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

    Where there is an old first file it goes before any of the others is replaced: at no moment is
    there a first file whose companions are another's.

    Args:
        files: each with its target, all in one folder.
        overwrite: whether targets may be replaced.

    Raises:
        FileExistsError: there is a target, and overwrite is False.
        OSError: the file system refuses; then none of the names is given.
    """
    for file, _ in files:
        file.sync()
    for _, target in files:
        require_writable_name(target, overwrite=overwrite)
    folder = files[0][1].parent
    if overwrite and len(files) > 1:
        files[0][1].unlink(missing_ok=True)
        _sync_folder(folder)
    with _taking_back() as named:
        for file, target in reversed(files):
            file.rename(target, overwrite=overwrite)
            named.append(target)
    _sync_folder(folder)


@contextlib.contextmanager
def _taking_back() -> Iterator[list[Path]]:
    """Removes the names that were given, should one of them fail: parts of a set are no model."""
    named: list[Path] = []
    try:
        yield named
    except BaseException:
        for target in named:
            target.unlink(missing_ok=True)
        raise


def remove_stale_files(folder: Path) -> None:
    """Removes the temporary files of processes that are gone, and never one of a live process.

    A live process holds a lock on each of its files, which ends with it. Only the kernel that
    keeps the locks can tell, so files whose names do not bear its mark are left alone.
    """
    ours = re.compile(rf"\.phiggml-{_kernel_mark()}-[0-9a-f]{{16}}\.tmp")
    try:
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if ours.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        # What cannot be opened, locked or removed stays.
        with contextlib.suppress(OSError):
            _remove_if_unlocked(path)


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        """Nothing to do: an open file cannot be removed here."""

    def _remove_if_unlocked(path: Path) -> None:
        path.unlink(missing_ok=True)

else:

    def _lock(descriptor: int) -> None:
        """Locks the file as long as it is open."""
        # Where there are no locks, nobody can take the file for stale either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _remove_if_unlocked(path: Path) -> None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            # Over NFS only what is open for writing can be locked.
            descriptor = os.open(path, flags | os.O_WRONLY)
        except PermissionError:
            descriptor = os.open(path, flags | os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


if sys.platform == "linux":

    def _begin_write_back(descriptor: int, start: int, stop: int) -> None:
        """Has the disk begin with these bytes; they stay in memory until they are there."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

else:

    def _begin_write_back(descriptor: int, start: int, stop: int) -> None:
        """Elsewhere the advice means something else."""


@cache
def _kernel_mark() -> str:
    """Eight digits for the running kernel: processes that see each other's locks share them."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        kernel = platform.node()
    return hashlib.sha256(kernel.encode()).hexdigest()[:8]


def _create_locked(folder: Path) -> tuple[int, Path]:
    # O_EXCL: never someone else's file. 0666: the permissions that the umask leaves.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = folder / f".phiggml-{_kernel_mark()}-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(path, flags, 0o666)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, path
        # Between the two calls somebody took it for stale.
        os.close(descriptor)


def _close_and_remove(descriptor: int, path: Path, owner: int) -> None:
    os.close(descriptor)
    # A forked child lets go of its copy; the file is its parent's.
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


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
        source.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable, where folders can be synced; the file itself is already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
