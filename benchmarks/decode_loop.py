"""Compiles decode_loop.cpp against the libraries and headers of this installation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import phiggml as pg

SOURCE = Path(__file__).with_suffix(".cpp")


def build(folder: Path) -> list[str | os.PathLike[str]]:
    """The beginning of a command: the program, and where it finds ggml's backends."""
    program, libraries = folder / "decode_loop", pg.get_library_dir()
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", f"-I{pg.get_include()}"]
    command += [str(SOURCE), "-o", str(program), f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    command += [f"-lphiggml-{name}" for name in ("llama", "ggml", "ggml-base")]
    subprocess.run(command, check=True)
    return [program, libraries]
