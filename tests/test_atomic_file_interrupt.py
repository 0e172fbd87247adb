"""An exception at any moment: the old file or the new one, and nothing that nobody holds."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from phiggml.atomic_file import AtomicFile, publish_together
from phiggml.atomic_file_lock import FolderLock, remove_stale_files


class Stop(BaseException):
    """As Ctrl-C, or what a handler of a signal raises."""


def stopped_at(n: int, work: Callable[[], None]) -> bool:
    """Raises Stop before the n-th instruction of atomic_file; False when there are fewer."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not Path(frame.f_code.co_filename).name.startswith("atomic_file"):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            count += 1
            if count == n:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of descriptors here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_every_instruction(tmp_path: Path, overwrite: bool, count: int) -> None:
    targets = [tmp_path / f"part-{i}" for i in range(count)]
    new = {target.name: "new" for target in targets}
    old = {target.name: "old" for target in targets} if overwrite else {}

    def work() -> None:
        files: list[AtomicFile] = []
        try:
            for _ in targets:
                file = AtomicFile(tmp_path, leader=files[0] if files else None)
                files.append(file)
                file.write(b"new")
                file.rest()
            publish_together(list(zip(files, targets, strict=True)), overwrite=overwrite)
        finally:
            for file in files[::-1]:
                file.discard()

    found = {"old": 0, "new": 0}
    n, running = 1, True
    open_before = descriptors()
    while running:
        for target in targets:
            target.unlink(missing_ok=True)
            if overwrite:
                target.write_text("old")
        with warnings.catch_warnings():
            # The stream that nobody got hold of.
            warnings.simplefilter("ignore", ResourceWarning)
            running = stopped_at(n, work)
        # A lock that were still held would keep these.
        remove_stale_files(tmp_path)
        after = contents(tmp_path)
        assert after in (old, new), n
        found["new" if after == new else "old"] += 1
        lock = FolderLock(tmp_path)
        lock.acquire()
        lock.release()
        n += 3 if count == 3 else 1
    # The folder's, where the instruction after os.open or before os.close is not reached.
    assert descriptors() - open_before <= 8
    assert found["old"] > 50
    assert found["new"] > 3
