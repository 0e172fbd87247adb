"""kill -9 while a file is written: under its name is the old one or the new one, whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODES = ["streamed", "declared", "moved", "split", "new"]


def killed(folder: Path, how: str) -> dict[str, tuple[int, int, int]]:
    """Runs the killer, which checks; per mode: killed, left a temporary file, finished."""
    script = Path(__file__).with_name("killed_writers.py")
    finished = subprocess.run(
        [sys.executable, script, folder, how],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    assert [line[0] for line in lines] == MODES
    return {mode: (int(a), int(b), int(c)) for mode, a, b, c in lines}


@pytest.mark.slow
def test_killed_at_50_random_moments_of_each_way_of_writing(tmp_path):
    for mode, (times, left, _) in killed(tmp_path, "50").items():
        assert times == 50, mode
        # How many came in the middle is the machine's; test_killed_before_and_after_every_step
        # leaves none of them to chance.
        assert left >= 1, mode


@pytest.mark.slow
def test_killed_before_and_after_every_step(tmp_path):
    """Each call that changes what others see: no step is left to chance."""
    for mode, (times, left, new) in killed(tmp_path, "steps").items():
        assert times >= 40, mode
        assert left >= 30, mode
        # After the rename: the folder's fsync, and the end itself; of a set, lock and old files.
        more = {"new": 8, "split": 20}.get(mode, 2)
        assert 2 <= new < times - left + more, mode
