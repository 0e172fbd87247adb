"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError

__all__ = ["AtomicFile", "require_writable_name"]

_ONE_WRITE = 1 << 30  # a single write() moves less than 2 GiB


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

    Args:
        folder: where the target will be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / f".phiggml-{secrets.token_hex(8)}.tmp"
        # O_EXCL: never someone else's file. 0666: the permissions that the umask leaves.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
        self._path = path
        self._descriptor = descriptor
        self._position = 0
        self._remove = weakref.finalize(self, _close_and_remove, descriptor, path)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Appends the bytes of a C-contiguous array, without copying it."""
        view = array.reshape(-1).view(np.uint8).data
        while len(view) > 0:
            written = os.write(self._descriptor, view[:_ONE_WRITE])
            self._position += written
            view = view[written:]

    def pad(self, alignment: int) -> None:
        """Appends zeros up to the next multiple of `alignment`."""
        missing = -self._position % alignment
        while missing > 0:
            block = np.zeros(min(missing, 1 << 20), np.uint8)
            self.write(block)
            missing -= block.size

    def publish(self, target: Path, *, overwrite: bool) -> None:
        """Makes the bytes durable and gives the file its name.

        Raises:
            FileExistsError: there is a target, and overwrite is False.
        """
        os.fsync(self._descriptor)
        require_writable_name(target, overwrite=overwrite)
        if overwrite:
            self._path.replace(target)
        else:
            _rename_to_new(self._path, target)
        self._remove.detach()
        os.close(self._descriptor)
        _sync_folder(self._folder)

    def discard(self) -> None:
        """Removes the file, unless it was published."""
        self._remove()


def _close_and_remove(descriptor: int, path: Path) -> None:
    os.close(descriptor)
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
