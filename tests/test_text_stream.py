"""Text from the bytes of tokens: whole characters, and nothing of a stop text."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

import phiggml as pg
from phiggml.text_stream import text_stream

LETTERS = ["a", "b", "é", "🙂", "�"]
BROKEN = [b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xc3", b"\xe0", b"\xed", b"\xf0", b"\xf4", b"\xf5"]
BROKEN += [b"\xe0\xa0", b"\xe0\x9f", b"\xed\x9f", b"\xed\xa0\x80", b"\xef\xbf", b"\xf0\x8f"]
BROKEN += [b"\xf0\x90", b"\xf0\x9f\x99", b"\xf4\x8f\xbf", b"\xf4\x90", b"\xff"]


def test_characters_are_never_split() -> None:
    stream = text_stream((), strip_space=False)
    pieces = [stream.add(bytes([byte])) for byte in "é🙂!".encode()]
    assert pieces == ["", "é", "", "", "", "🙂", "!"]
    assert stream.rest() == ""


def test_half_a_character_at_the_end_is_replaced() -> None:
    stream = text_stream((), strip_space=False)
    assert stream.add("🙂".encode()[:2]) + stream.rest() == "�"


def test_stop_text_across_pieces() -> None:
    stream = text_stream(("<END>",), strip_space=False)
    assert [stream.add(piece) for piece in (b"one <E", b"ND", b"> two")] == ["one ", "", ""]
    assert stream.stopped and stream.rest() == ""


def test_what_only_looks_like_a_stop_text_comes_in_the_end() -> None:
    stream = text_stream(("<END>",), strip_space=False)
    assert stream.add(b"one <EN") == "one "
    assert stream.rest() == "<EN"


@pytest.mark.parametrize(("data", "text"), [(b" The", "The"), (b"  x", " x"), (b"The", "The")])
def test_the_tokenizers_own_space(data: bytes, text: str) -> None:
    stream = text_stream((), strip_space=True)
    assert stream.add(data) + stream.add(b" dog") == text + " dog"


def test_of_two_stop_texts_that_come_at_once_the_first_to_begin() -> None:
    for pieces, text in (((b"-abcd",), "-"), ((b"-abc", b"d"), "-a")):
        stream = text_stream(("bc", "abcd"), strip_space=False)
        assert "".join(map(stream.add, pieces)) == text and stream.stopped


def test_half_a_surrogate_pair_is_never_found() -> None:
    stream = text_stream(("a\ud800", "\ud83d", "\ude42"), strip_space=False)
    assert stream.add(b"ba") == "b"
    assert stream.add(b"\xed\xa0\x80\xed\xb9\x82" + "🙂".encode()) == "a" + 6 * "�" + "🙂"
    assert not stream.stopped


def test_stop_texts_that_cannot_be() -> None:
    with pytest.raises(pg.InputError, match="stop: one of the texts is empty"):
        text_stream(("a", ""), strip_space=False)
    with pytest.raises(pg.InputError, match=f"stop: the texts have {2**24 + 1} bytes together"):
        text_stream(("a" * 2**24, "b"), strip_space=False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end that may be the beginning of a stop text."""
    longest = min(max(map(len, stops), default=0), len(text))
    for n in range(longest, 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


def certain(data: bytes) -> str:
    """The text that data begin, whatever follows them. (Python's own incremental decoder waits for
    a third byte where the second has made half a surrogate pair, and no character.)"""
    ways = [(data + more).decode(errors="replace") for more in (b"A", 3 * b"\x80", 3 * b"\xbf")]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*ways, strict=False))
    return "".join(letters[0] for letters in same)


def expected(pieces: Sequence[bytes], stops: Sequence[str], *, strip_space: bool) -> Iterator[str]:
    """What each piece should give, and the end: the rule, applied to the whole text so far."""
    data, text, n_given, stopped = b"", "", 0, False
    for i, piece in enumerate([*pieces, b""]):
        final = i == len(pieces)
        data += piece
        if not stopped:
            text = data.decode(errors="replace") if final else certain(data)
            text = text.removeprefix(" ") if strip_space else text
        places = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        stopped = bool(places)
        until = min(places) if places else len(text) - (0 if final else held_back(text, stops))
        yield text[n_given:until]
        n_given = until


def found(pieces: Sequence[bytes], stops: Sequence[str], *, strip_space: bool) -> list[str]:
    stream = text_stream(stops, strip_space=strip_space)
    return [*map(stream.add, pieces), stream.rest()]


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Pieces of any size, some of them empty."""
    borders = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(len(data) + 3)))
    return [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]


def test_any_bytes_cut_anywhere() -> None:
    rng = random.Random(5)
    n_stopped = n_replaced = 0
    for case in range(3000):
        letters = rng.sample(LETTERS, rng.randint(1, 3))
        known = [letter.encode() for letter in letters]
        broken = [*BROKEN, *(letter[:-1] for letter in known)] if case % 2 else []
        parts = known + rng.sample(broken, len(broken) // 4)
        data = b" " * rng.randrange(3) + b"".join(rng.choices(parts, k=rng.randrange(16)))
        sizes = [rng.randint(1, 6) for _ in range(rng.randrange(5))]
        stops = ["".join(rng.choices(letters, k=size)) for size in sizes]
        pieces, strip_space = cut(data, rng), rng.random() < 0.5
        wanted = list(expected(pieces, stops, strip_space=strip_space))
        assert found(pieces, stops, strip_space=strip_space) == wanted, (pieces, stops)
        n_stopped += len("".join(wanted)) + 1 < len(data.decode(errors="replace"))
        n_replaced += "\ufffd" in "".join(wanted)
    assert n_stopped > 1000 and n_replaced > 1000


def test_every_beginning_of_a_character() -> None:
    """Behind each first byte all that lie at the borders of what may follow one."""
    borders = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    for values in itertools.product(range(0x80, 0x100), borders, borders):
        pieces = [bytes([value]) for value in values]
        wanted = list(expected(pieces, (), strip_space=False))
        assert found(pieces, (), strip_space=False) == wanted, pieces


def test_many_long_stop_texts() -> None:
    """Looking at each of them again for each token would take hours."""
    stops = [n * "a" + "b" for n in range(2000, 2300)] + ["aab" * 1000 + "c"]
    stream = text_stream(stops, strip_space=False)
    text = "aab" * 999 + 1999 * "a" + "b" + 5000 * "a" + "b?"
    given = "".join(stream.add(letter.encode()) for letter in text)
    assert given + stream.rest() == text[: text.index(2299 * "a" + "b")] and stream.stopped
