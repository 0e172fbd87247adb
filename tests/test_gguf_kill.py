"""kill -9 while a file is edited or merged over: it is the old one or the new one, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from killer_run import run_killer

KINDS = ["numbers", "room", "anew", "merging"]


def killed(folder: Path, how: str) -> dict[str, tuple[int, int, int]]:
    """Per kind: killed, at different edits, new ones found."""
    found = run_killer("killed_editors.py", folder, how)
    assert list(found) == KINDS
    return found


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
