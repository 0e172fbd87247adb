"""How the cases of a hostile script ended, all in one process that must live on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def endings_of(script: str | None, argument: Path) -> list[str]:
    """Runs one of the hostile_*.py beside this file, which says what became of each case.

    Returns:
        Its lines but the last: it has come to its end, and said nothing on stderr.
    """
    assert script is not None
    result = subprocess.run(
        [sys.executable, script, str(argument)],
        capture_output=True,
        timeout=240,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    lines = result.stdout.decode(errors="replace").splitlines()
    errors = result.stderr.decode(errors="replace")
    assert result.returncode == 0, f"ended by {result.returncode} after {lines[-1:]}: {errors}"
    assert lines[-1] == "all done" and errors == ""
    return lines[:-1]
