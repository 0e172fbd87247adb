"""Regular expressions over tensor names: compiled, unless a search could take for ever."""

from __future__ import annotations

import re
from typing import Any

from phiggml.errors import InputError
from phiggml.recipe_type import short

__all__ = ["MOST_WAYS", "compiled", "ways"]

_MOST_CHARACTERS = 1000
# A name has 63 characters at most, and half of them follow where a search begins, on average.
_MOST_REPEATS = 32
# Four times ".*", say: a tenth of a second for a name.
MOST_WAYS = (_MOST_REPEATS + 1) ** 4

_TOKEN = re.compile(
    r"""
      (?P<atom> \\. | \[\^?\]?(?:\\.|[^]\\])*\] | \(\?\#[^)]*\) | \(\?P=\w+\) | \(\?[aiLmsu]+\) )
    | (?P<open> \((?: \?(?: P<\w+> | <?[=!] | > | \(\w+\) | [aiLmsu-]*: ) | (?!\?) ) )
    | (?P<close> \) )
    | (?P<choice> \| )
    | (?P<repeat> (?: [*+?] | \{\d+\} | \{\d*,\d*\} ) [?+]? )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_POSIX_CLASS = re.compile(r"\[:[a-z]+:\]")


def compiled(expression: Any) -> re.Pattern[str]:
    """Returns an override's expression, compiled.

    Raises:
        InputError: it is none, or a search for it could take for ever.
    """
    wrong = f"recipe: override {short(expression)}: it is no regular expression"
    if not isinstance(expression, str) or len(expression) > _MOST_CHARACTERS:
        raise InputError(f"{wrong}, which is text of {_MOST_CHARACTERS} characters at most.")
    if _POSIX_CLASS.search(expression):
        # To upstream's expressions it is all digits, say; to Python's a few characters.
        raise InputError(f"{wrong} of Python's, which has no [:class:]. Write \\d for [[:digit:]].")
    try:
        pattern = re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{wrong} ({error}). Escape what is meant literally.") from error
    if ways(expression) > MOST_WAYS:
        raise InputError(
            f"recipe: override {short(expression)}: a search for it could take for ever. Repeat no "
            "group that has repeats or choices in it, and write fewer of * and +."
        )
    return pattern


def ways(expression: str) -> int:
    """Bounds in how many ways a search may try to find an expression from one place of a name.

    Args:
        expression: one that Python compiles.

    Returns:
        At most MOST_WAYS + 1, which stands for more.
    """
    groups = [_Group()]
    for token in _TOKEN.finditer(expression):
        kind, text = token.lastgroup, token[0]
        if kind == "open":
            groups.append(_Group())
        elif kind == "choice":
            groups[-1].choose()
        elif kind == "repeat":
            groups[-1].repeat(*_counts(text))
        elif kind == "close" and len(groups) > 1:
            found = groups.pop().total
            groups[-1].append(found)
        elif text == "(" or kind == "close":
            return MOST_WAYS + 1  # a syntax unknown here, such as (?x)
        else:
            groups[-1].append(1)
    return groups[0].total if len(groups) == 1 else MOST_WAYS + 1


class _Group:
    """The ways through what stands between two parentheses."""

    def __init__(self) -> None:
        self._others = 0  # through the choices before this one
        self._before = 1  # through this one, but for its last item
        self._last = 1

    @property
    def total(self) -> int:
        return _bounded(self._others + self._before * self._last)

    def append(self, ways: int) -> None:
        """Another item follows."""
        self._before = _bounded(self._before * self._last)
        self._last = ways

    def choose(self) -> None:
        """Another choice begins."""
        self._others = self.total
        self._before = self._last = 1

    def repeat(self, least: int, most: int) -> None:
        """The last item may occur so often."""
        found, power = 0, 1
        for count in range(most + 1):
            found += power if count >= least else 0
            power = _bounded(power * self._last)
        self._last = _bounded(found)


def _counts(repeat: str) -> tuple[int, int]:
    """How often an item occurs, at least and at most."""
    known = {"*": (0, _MOST_REPEATS), "+": (1, _MOST_REPEATS), "?": (0, 1)}
    if repeat[0] in known:
        return known[repeat[0]]
    least, comma, most = repeat.rstrip("?+")[1:-1].partition(",")
    fewest = min(int(least or 0), _MOST_REPEATS)
    if not comma:
        return fewest, fewest
    return fewest, min(int(most or _MOST_REPEATS), _MOST_REPEATS)


def _bounded(ways: int) -> int:
    return min(ways, MOST_WAYS + 1)
