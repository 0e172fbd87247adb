"""Checks the hand-kept stubs of phiggml._core against the compiled module, with mypy's stubtest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    command = [sys.executable, "-m", "mypy.stubtest", "phiggml._core"]
    command += ["--allowlist", str(ROOT / "tools" / "stubtest_allowlist.txt")]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "python")}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())
