"""Hostile grammars and schemas raise a sentence, and none of them ends the process or fills it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hostile_grammars


@pytest.fixture(scope="module")
def endings(nano_f16: Path) -> list[str]:
    """How each case ended in one process that tried all of them."""
    result = subprocess.run(
        [sys.executable, str(Path(hostile_grammars.__file__)), str(nano_f16)],
        capture_output=True,
        timeout=240,
    )
    lines = result.stdout.decode(errors="replace").splitlines()
    assert result.returncode == 0, f"ended by {result.returncode} after {lines[-1:]}"
    assert lines[-1] == "all done" and result.stderr == b""
    return lines[:-1]


def test_all_end_as_they_must(endings: list[str]) -> None:
    assert endings == [f"{name}: ok" for name in hostile_grammars.CASES]
