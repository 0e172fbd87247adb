"""Files in the page cache or not, and the disk idle: the same state before each run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def settle(paths: Iterable[Path], *, warm: bool) -> None:
    """Waits for what is being written; then reads the files into the page cache, or drops them."""
    os.sync()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while warm and file.read(8 << 20):
                pass


def seconds_of_fsync(path: Path) -> float:
    """Seconds until a file that was written is on the disk."""
    started = time.perf_counter()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - started
