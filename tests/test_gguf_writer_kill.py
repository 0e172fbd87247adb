"""kill -9 while a file is written: under its name is the old one or the new one, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from killer_run import run_killer

MODES = ["streamed", "declared", "moved", "split", "new"]


def killed(folder: Path, how: str) -> dict[str, tuple[int, int, int]]:
    """Per mode: killed, left a temporary file, finished."""
    found = run_killer("killed_writers.py", folder, how)
    assert list(found) == MODES
    return found


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
