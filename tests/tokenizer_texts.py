"""Strings that tokenizers disagree about, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

_TEXT = (
    "the quick brown fox jumps over lazy dogs Hello WORLD McDonald's iPhone x86_64 naïve café "
    "ÉCOLE École éCOLE straße STRAẞE Ǆungla ǅungla Ωmega ΣΊΣΥΦΟΣ Привет МОСКВА Москва "
    "עברית العربية हिन्दी नमस्ते বাংলা ไทย ภาษาไทย 你好世界 日本語 カタカナ 한국어 각 각 ᲀ Ꭰ ꭰ "
    "don't DON'T won'T I'M we'RE they'Ve he'LL o'clock 'tis 's 'S 'ſ 'K ''s 'd've rock'n'roll"
)
_WORDS = _TEXT.split()
_SPACES = (
    " ",
    "  ",
    "   ",
    " " * 7,
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\n \n",
    " \n",
    "\n\n\n  ",
    "\u00a0",
    "\u2028",
    "\u2029",
    "\u0085",
    "\u3000",
    "\u200b",
    "\u202f",
    "\x0b",
    "\x0c",
    "\x1c",
    " \t \r\n ",
)
_NUMBERS = (
    "0",
    "12",
    "123",
    "1234",
    "12345678901",
    "3.14",
    "1,000,000",
    "-7e-12",
    "٣٤٥٦",
    "१२३४५",
    "½",
    "ⅷⅨ",
    "①②③④",
    "௧௨௩",
    "²³",
    "〇一",
    "\U0001d7ce\U0001d7cf\U0001d7d0\U0001d7d1",
    "𐄇",
)
_SYMBOLS = (
    "!",
    "?!",
    "...",
    "--",
    "==>",
    "//",
    "/",
    "/\n",
    "!\n\n",
    "!\r\n/",
    "{}();",
    "#include <x>",
    "$",
    "€",
    "%",
    "_",
    "__init__",
    "\\n",
    "''",
    '"',
    "`",
    "«»",
    "—",
    "…",
    "\u0301",
    "a\u0301e\u0308",
    "\u0301\u0302",
    "!\u0301",
    " \u0301",
    "Z͑ͫ̓̏A̴L͟G̵O͡",
    "्",
    "\u200d",
    "\ufe0f",
)
_EMOJI = (
    "🚀",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇫🇷",
    "👍🏽",
    "☺️",
    "🤷‍♀️",
    "1️⃣",
    "🫠",
)
_ODD = (
    "\u0130",
    "\u0131",
    "İstanbul",
    "ﬁ",
    "ﬆ",
    "\ue000",
    "\uf8ff",
    "\U000f0000",
    "\u0378",
    "\U000e0080",
    "\ufffd",
    "\ufffe",
    "\ufeff",
    "\x00",
    "\x7f",
    "\u00ad",
    "\u2060",
    "\U0010ffff",
    "▁",
    "▁▁a",
    "Ġ",
    "Ċ",
    "\u1c89",
    "\ua7cb",
    "\U00016d40",
    "<0x0A>",
    "<",
    "|>",
    "<|",
    "[PAD7]",
)
_CODE = (
    "def f(x):\n    return x ** 2  # 'square'\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] += 1;\n}\r\n",
    "SELECT * FROM t WHERE a='b';",
    "    if x:\n        y()\n\n\n",
    "https://example.org/a?b=c&d=%20",
    '<html>\n  <p class="x">…</p>\n</html>',
)
_LONG = (
    " " * 3000,
    "a" * 3000,
    "-" * 2500,
    "\n" * 1200,
    "1" * 2000,
    "漢" * 1000,
    "\u0301" * 1500,
    "A文" * 900,
)


def _character(rng: random.Random) -> str:
    """Any character, those of the first plane more often."""
    limit = rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000))
    while True:
        code = rng.randrange(limit)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def _piece(rng: random.Random, added: Sequence[str]) -> str:
    kinds = (_WORDS, _WORDS, _SPACES, _SPACES, _NUMBERS, _SYMBOLS, _EMOJI, _ODD, _CODE)
    roll = rng.random()
    if added and roll < 0.12:
        return rng.choice(added)
    if roll < 0.25:
        return "".join(_character(rng) for _ in range(rng.randint(1, 4)))
    if roll < 0.3:
        return rng.choice(_WORDS).upper() + rng.choice(_WORDS).lower()
    if roll < 0.34:
        return rng.choice((" ", "\n", "\t", "a", "Ä", "9", "!", "\u0301")) * rng.randint(2, 40)
    return rng.choice(rng.choice(kinds))


def texts(count: int, *, seed: int, added: Sequence[str] = ()) -> list[str]:
    """Strings of up to some dozen pieces; a few are runs of thousands of characters.

    Args:
        count: how many, of which the first are fixed.
        seed: of everything else.
        added: the texts of added tokens, which about one piece in eight is.
    """
    rng = random.Random(seed)
    found = [
        "",
        " ",
        "  ",
        "\n",
        *_WORDS,
        *_SPACES,
        *_NUMBERS,
        *_SYMBOLS,
        *_EMOJI,
        *_ODD,
        *_CODE,
        *_LONG,
    ]
    for token in added:
        found += [
            token,
            f" {token} ",
            f"a{token}b",
            f"\u3000{token}\r\n x",
            token + token,
            token[:-1],
        ]
    while len(found) < count:
        pieces = [_piece(rng, added) for _ in range(rng.choice((1, 2, 3, 5, 8, 13)))]
        found.append(rng.choice(("", "", " ")).join(pieces))
    return found
