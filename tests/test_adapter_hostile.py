"""Adapter files that llama.cpp dies of, or passes over in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import hostile_adapters


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each case ended in one process that used all of them, and ended by itself."""
    result = subprocess.run(
        [sys.executable, hostile_adapters.__file__, str(tmp_path_factory.mktemp("adapters"))],
        capture_output=True,
        timeout=240,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    lines = result.stdout.decode(errors="replace").splitlines()
    assert result.returncode == 0, f"ended by {result.returncode} after {lines[-1:]}"
    assert lines[-1] == "all done" and result.stderr == b""
    return dict(line.split("\t") for line in lines[:-1])


@pytest.mark.parametrize("name", list(hostile_adapters.CASES))
def test_one_thing_wrong(endings: dict[str, str], name: str) -> None:
    _, _, expected = hostile_adapters.CASES[name]
    if expected is None:
        assert endings[name] == "works"
    else:
        assert expected in endings[name]
        assert endings[name].startswith(("FormatError True ", "UnsupportedError lora: /"))


def test_other_files(endings: dict[str, str]) -> None:
    assert "big-endian" in endings["big-endian"]
    assert "general.type is missing" in endings["a model"]


def test_damaged_files(endings: dict[str, str]) -> None:
    """Cut anywhere, or with one bit wrong: refused, or harmless."""
    cut = [ending for name, ending in endings.items() if name.startswith("cut ")]
    flipped = [ending for name, ending in endings.items() if name.startswith("flip ")]
    assert len(cut) > 100 and all(ending.startswith("FormatError True") for ending in cut)
    refused = [e for e in flipped if e.startswith(("FormatError True", "UnsupportedError lora"))]
    assert len(refused) > 300
    assert set(flipped) - set(refused) == {"works"}
