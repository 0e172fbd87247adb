"""How tests run the scripts that kill writers and editors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_killer(script: str, folder: Path, how: str) -> dict[str, tuple[int, int, int]]:
    """Runs a killer, which checks what it finds; the three numbers that it prints of each kind."""
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), folder, how],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    return {kind: (int(a), int(b), int(c)) for kind, a, b, c in lines}
