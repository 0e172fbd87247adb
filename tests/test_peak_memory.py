"""The most memory that was held: anonymous, by a definition of its own, and no less afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from phiggml import peak_memory
from phiggml.peak_memory import PeakMemory

NBYTES = 64 << 20
# What else a process may get meanwhile.
SLACK = 8 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_the_most_that_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a file that is mapped are not among it, what was freed since is."""
    monkeypatch.setattr(peak_memory, "_EVERY_SECONDS", 0.0)
    memory, seen = PeakMemory(), []
    assert memory.nbytes == 0

    def look() -> None:
        memory.look()
        seen.append(memory.nbytes)

    look()
    np.zeros(NBYTES, np.uint8).tofile(tmp_path / "zeros")
    mapped = np.memmap(tmp_path / "zeros", mode="r")
    assert not mapped[::4096].any()
    look()
    assert seen[1] - seen[0] < SLACK
    held = np.ones(NBYTES, np.uint8)
    look()
    assert NBYTES - SLACK < seen[2] - seen[0] < NBYTES + SLACK
    del held
    look()
    assert seen[3] == seen[2]


def test_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, b"", b"VmHWM: 5 kB\n", b"RssAnon: \xff kB\n"):
        status = tmp_path / "status"
        if content is not None:
            status.write_bytes(content)
        monkeypatch.setattr(peak_memory, "_STATUS", status)
        memory = PeakMemory()
        memory.look()
        assert memory.nbytes == 0


def test_it_does_not_look_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "_EVERY_SECONDS", 3600.0)
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "status")
    memory = PeakMemory()
    for kilobytes in (1, 2):
        (tmp_path / "status").write_text(f"RssAnon:\t{kilobytes} kB\n")
        memory.look()
    assert memory.nbytes == 1024
