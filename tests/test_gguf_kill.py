"""kill -9 while a file is edited or merged over: it is the old one or the new one, whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ["numbers", "room", "anew", "merging"]


def killed(folder: Path, how: str) -> dict[str, tuple[int, int, int]]:
    """Runs the killer, which checks; per kind: killed, at different edits, new ones found."""
    script = Path(__file__).with_name("killed_editors.py")
    finished = subprocess.run(
        [sys.executable, script, folder, how],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    assert [line[0] for line in lines] == KINDS
    return {kind: (int(a), int(b), int(c)) for kind, a, b, c in lines}


@pytest.mark.slow
def test_killed_at_50_random_moments_of_each_kind_of_edit(tmp_path):
    for kind, (times, moments, _) in killed(tmp_path, "50").items():
        assert times == 50, kind
        assert moments >= 8, kind


@pytest.mark.slow
def test_killed_before_and_after_every_step(tmp_path):
    """Each call that changes what others see, in five edits: no step is left to chance."""
    for kind, (times, moments, new) in killed(tmp_path, "steps").items():
        assert times >= 20, kind
        assert moments >= 5, kind
        assert new >= 5, kind
