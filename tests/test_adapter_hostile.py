"""Adapter files that llama.cpp dies of, or passes over in silence."""

from __future__ import annotations

import pytest

import hostile_adapters
from hostile_endings import endings_of


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each case ended in one process that used all of them, and ended by itself."""
    return dict(
        line.split("\t")
        for line in endings_of(hostile_adapters.__file__, tmp_path_factory.mktemp("adapters"))
    )


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
