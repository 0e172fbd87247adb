"""Locks that tell the temporary files of the living from those of the dead."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import sys
import time
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = [
    "TEMPORARY_PREFIX",
    "FolderLock",
    "kernel_mark",
    "lock",
    "remove_stale_files",
    "unlock",
]

TEMPORARY_PREFIX = ".phiggml-"
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.01


@cache
def kernel_mark() -> str:
    """Eight digits for the running kernel: processes that see each other's locks share them."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        kernel = platform.node()
    return hashlib.sha256(kernel.encode()).hexdigest()[:8]


def remove_stale_files(folder: Path) -> None:
    """Removes the temporary files of processes that are gone, and never one of a live process.

    A file whose name ends in 16 digits is locked by its process as long as that lives; its
    companions, whose names go on with a number, live as long as it does. Only the kernel that
    keeps the locks can tell, so files whose names do not bear its mark are left alone.
    """
    begin = re.escape(f"{TEMPORARY_PREFIX}{kernel_mark()}-")
    ours = re.compile(rf"({begin}[0-9a-f]{{16}})(-[0-9]+)?\.tmp")
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = ours.fullmatch(entry.name)
                if match is not None:
                    companions = found.setdefault(match[1] + ".tmp", [])
                    if match[2] is not None:
                        companions.append(folder / entry.name)
    except OSError:
        return
    for leader, companions in found.items():
        # What cannot be opened, locked or removed stays.
        with contextlib.suppress(OSError):
            _remove_if_unlocked(folder / leader, companions)


if sys.platform == "win32":

    def lock(descriptor: int) -> bool:
        """Nothing to do: an open file cannot be removed here."""
        return True

    def unlock(descriptor: int) -> None:
        """Nothing to do."""

    def _remove_if_unlocked(leader: Path, companions: list[Path]) -> None:
        leader.unlink(missing_ok=True)
        for path in companions:
            path.unlink(missing_ok=True)

else:

    def lock(descriptor: int) -> bool:
        """Locks the file as long as it is open; False where there are no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Ends the lock, which closing alone does not while a forked child has the file open."""
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _remove_if_unlocked(leader: Path, companions: list[Path]) -> None:
        """The leader goes last: as long as it is there, it can be asked whether it is locked."""
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            # Over NFS only what is open for writing can be locked.
            descriptor = os.open(leader, flags | os.O_WRONLY)
        except PermissionError:
            descriptor = os.open(leader, flags | os.O_RDONLY)
        except FileNotFoundError:
            # It has its name, and what it set aside is left.
            for path in companions:
                path.unlink(missing_ok=True)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in (*companions, leader):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


class FolderLock:
    """Keeps two sets of files from getting their names in one folder at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self._owner = os.getpid()

    def acquire(self) -> None:
        """Waits for the lock; where folders cannot be locked it does nothing.

        Raises:
            BlockingIOError: somebody else has held it for ten seconds.
        """
        if sys.platform == "win32":
            return
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        deadline = time.monotonic() + _LOCK_SECONDS
        while self._descriptor >= 0:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    message = "Somebody else is giving a set of files their names in this folder"
                    raise BlockingIOError(errno.EWOULDBLOCK, message, str(self._folder)) from error
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError:
                return
            else:
                return

    def release(self) -> None:
        """Ends the lock."""
        if self._descriptor >= 0:
            if os.getpid() == self._owner:
                unlock(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        # An exception may have come just before the release.
        self.release()
