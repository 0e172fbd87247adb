"""A file that takes another's place: its bytes, its permissions and its extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from phiggml.atomic_file import AtomicFile

__all__ = ["Replacement"]

# What copy_file_range answers where only reading and writing can copy.
_NO_COPY = (
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EPERM,
    errno.EIO,
)


class Replacement(AtomicFile):
    """What is written beside a file to take its name; nobody else may read it until it has that."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, permissions=stat.S_IRUSR | stat.S_IWUSR)

    def permit_as(self, descriptor: int) -> None:
        """Gives it the attributes and owner of an open file, and with its name the permissions.

        As far as that is allowed. A group that is not the file's gets no permissions.
        """
        status = os.fstat(descriptor)
        self._copy_attributes(descriptor)
        # One by one: a member of the group may give the file to it, but not to another owner.
        for owner, group in ((-1, status.st_gid), (status.st_uid, -1)):
            with contextlib.suppress(OSError):
                os.fchown(self._descriptor, owner, group)
        mode = stat.S_IMODE(status.st_mode)
        if os.fstat(self._descriptor).st_gid != status.st_gid:
            mode &= ~(stat.S_IRWXG | stat.S_ISGID)
        self._permissions = mode

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
        self._synced = False
        return copied

    def _copy_some(self, descriptor: int, offset: int, nbytes: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(descriptor, self._descriptor, nbytes, offset)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
            else:
                # Some file systems answer 0 before the end.
                if count > 0:
                    self.position += count
                    return count
        block = os.pread(descriptor, nbytes, offset)
        self.write(block)
        return len(block)

    def _copy_attributes(self, descriptor: int) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                for name in os.listxattr(descriptor):
                    with contextlib.suppress(OSError):
                        os.setxattr(self._descriptor, name, os.getxattr(descriptor, name))
