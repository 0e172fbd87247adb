"""Hostile grammars and schemas raise a sentence, and none of them ends the process or fills it."""

from __future__ import annotations

from pathlib import Path

import pytest

import hostile_grammars
from hostile_endings import endings_of


@pytest.fixture(scope="module")
def endings(nano_f16: Path) -> list[str]:
    """How each case ended in one process that tried all of them."""
    return endings_of(hostile_grammars.__file__, nano_f16)


def test_all_end_as_they_must(endings: list[str]) -> None:
    assert endings == [f"{name}: ok" for name in hostile_grammars.CASES]
