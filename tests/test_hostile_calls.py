"""Wrong calls raise the right class with a sentence, and none of them ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hostile_calls


@pytest.fixture(scope="module")
def endings(nano_f16: Path) -> dict[str, str]:
    """How each case ended in one process that made all of them."""
    result = subprocess.run(
        [sys.executable, str(Path(hostile_calls.__file__)), str(nano_f16)],
        capture_output=True,
        timeout=240,
    )
    lines = result.stdout.decode(errors="replace").splitlines()
    assert result.returncode == 0, f"ended by {result.returncode} after {lines[-1:]}"
    assert lines[-1] == "all done" and result.stderr == b""
    return dict(line.rsplit(": ok", 1) if line.endswith(": ok") else (line, "") for line in lines)


def test_the_process_lives_on(endings: dict[str, str]) -> None:
    assert len(endings) == len(hostile_calls.CASES) + 1


@pytest.mark.parametrize("name", list(hostile_calls.CASES))
def test_case(endings: dict[str, str], name: str) -> None:
    assert name in endings, [line for line in endings if line.startswith(name)]
