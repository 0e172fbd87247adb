"""Saved states of strangers: all of them loaded into one session, which answers as before."""

from __future__ import annotations

from collections import Counter

import pytest

import hostile_states
from hostile_endings import endings_of
from hostile_states import CASES, WORKS


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each case ended in one process that loaded all of them, and ended by itself."""
    return dict(
        line.split("\t")
        for line in endings_of(hostile_states.__file__, tmp_path_factory.mktemp("states"))
    )


@pytest.mark.parametrize("name", list(CASES))
def test_one_thing_wrong(endings: dict[str, str], name: str) -> None:
    _, expected = CASES[name]
    if expected == "works or fails":
        assert endings[name] in (WORKS, "fails later")
    else:
        assert endings[name] == expected


def test_other_files(endings: dict[str, str]) -> None:
    assert endings["empty"] == endings["a model"] == "FormatError"
    assert endings["as saved again"] == WORKS


def counted(endings: dict[str, str], kind: str) -> Counter[str]:
    numbered = (name.rpartition(" ") for name in endings)
    return Counter(endings[f"{k} {n}"] for k, _, n in numbered if k == kind and n.isdigit())


def test_damage_is_seen(endings: dict[str, str]) -> None:
    """Cut anywhere, or with one bit of any byte wrong."""
    cut, flipped = counted(endings, "cut"), counted(endings, "flip")
    assert set(cut) == {"FormatError"} and cut.total() > 1500
    assert set(flipped) == {"FormatError", "UnsupportedError"} and flipped.total() == cut.total()
    assert flipped["UnsupportedError"] == 4  # the bytes of the version


def test_malice_is_harmless(endings: dict[str, str]) -> None:
    """With one bit wrong and the hash that belongs to it: refused, or other numbers."""
    cut, header = counted(endings, "cut and signed"), counted(endings, "header")
    assert set(cut) == {"FormatError"} and cut.total() == hostile_states.NUMBERS
    assert header.total() == 8 * hostile_states.HEADER
    assert set(header) == {"FormatError", "SessionError", "UnsupportedError", WORKS}
    assert header[WORKS] == 1  # the side of the line, which this model has not
    flipped = counted(endings, "signed")
    assert flipped.total() == hostile_states.N_FLIPS
    assert set(flipped) <= {"FormatError", "fails later", WORKS} and flipped[WORKS] > 300
