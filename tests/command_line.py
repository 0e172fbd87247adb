"""The command line, called inside this process or started as one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from phiggml import cli

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
GREEDY = ("--temperature", "0", "--threads", "1")

Out = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def phiggml(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def started(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phiggml", *map(str, arguments)]
    # Output is buffered, as it is for users, so that the interpreter has some to flush at its end.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        timeout=60,
        check=False,
        **settings,
    )


def complaint(out: Out) -> str:
    """The only line on stderr."""
    (line,) = out.readouterr().err.splitlines()
    assert line.startswith("phiggml: ")
    return str(line)


def without_template(model: Path, folder: Path) -> Path:
    """A copy of the model whose file has no chat template."""
    path = folder / "plain.gguf"
    with pg.GGUFFile(model) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            if key != "tokenizer.chat_template":
                writer.metadata[key] = file.metadata.exact(key)
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.data, tensor.type)
    return path
