"""Text from the bytes of tokens: whole characters, and nothing of a stop text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiggml.completion import TextStream


def test_characters_are_never_split() -> None:
    stream = TextStream((), strip_space=False)
    pieces = [stream.add(bytes([byte])) for byte in "é🙂!".encode()]
    assert pieces == ["", "é", "", "", "", "🙂", "!"]
    assert stream.rest() == ""


def test_half_a_character_at_the_end_is_replaced() -> None:
    stream = TextStream((), strip_space=False)
    assert stream.add("🙂".encode()[:2]) + stream.rest() == "�"


def test_stop_text_across_pieces() -> None:
    stream = TextStream(("<END>",), strip_space=False)
    assert [stream.add(piece) for piece in (b"one <E", b"ND", b"> two")] == ["one ", "", ""]
    assert stream.stopped and stream.rest() == ""


def test_what_only_looks_like_a_stop_text_comes_in_the_end() -> None:
    stream = TextStream(("<END>",), strip_space=False)
    assert stream.add(b"one <EN") == "one "
    assert stream.rest() == "<EN"


@pytest.mark.parametrize(("data", "text"), [(b" The", "The"), (b"  x", " x"), (b"The", "The")])
def test_the_tokenizers_own_space(data: bytes, text: str) -> None:
    stream = TextStream((), strip_space=True)
    assert stream.add(data) + stream.add(b" dog") == text + " dog"


@given(
    text=st.text(alphabet="ab🙂", max_size=40),
    stops=st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_any_cutting_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(stops, strip_space=False)
    data, found, i = text.encode(), "", 0
    while data and not stream.stopped:
        size = cuts[i % len(cuts)]
        found += stream.add(data[:size])
        data, i = data[size:], i + 1
    found += stream.rest()
    # The oracle looks at growing prefixes of whole characters, as they become known.
    at = min((k for k in (text.find(stop) for stop in stops) if k >= 0), default=None)
    if at is None:
        assert found == text
    else:
        assert text.startswith(found) and not any(stop in found for stop in stops)
        assert stream.stopped
