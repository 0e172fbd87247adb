"""Patterns of JSON schemas, rewritten as llama.cpp's converter reads them rightly.

Upstream copies a pattern's characters into the grammar as they stand, so that `.` would end a JSON
string in its middle, and it applies what follows an escape to all the literal before it. What is
written here uses groups, classes and escapes by number alone, and says of each character how JSON
writes it.

Source:
    ECMA-262, "Patterns"; RFC 8259, section 7. Where Python's `re` reads an expression otherwise
    (digits of other scripts), what both take is allowed.
"""

from __future__ import annotations

from phiggml.errors import InputError, UnsupportedError
from phiggml.json_schema_fault import unheeded, wrong

__all__ = ["plain_pattern"]

MOST_REPETITIONS = 2000
MOST_NESTING = 40
LAST = 0x10FFFF

Ranges = list[tuple[int, int]]

DIGIT: Ranges = [(0x30, 0x39)]
WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
SPACE: Ranges = [(0x09, 0x0D), (0x20, 0x20)]
NOT_ASCII: Ranges = [(0x80, LAST)]
LINE_ENDS: Ranges = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
SYNTAX = frozenset("^$\\.*+?()[]{}|/-")

SHORT_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
"""JSON's; control characters that have none are not written."""


def plain_pattern(pattern: str, path: str) -> str:
    """The expression for what stands between the quotes of a JSON string that matches.

    Raises:
        InputError: it is no regular expression.
        UnsupportedError: it holds what has no grammar, such as a look-ahead.
    """
    return _Pattern(pattern, path).rewritten()


class _Pattern:
    def __init__(self, pattern: str, path: str) -> None:
        self._text = pattern
        self._path = path
        self._at = 0

    def rewritten(self) -> str:
        """All of it, anchored at both ends."""
        alternatives = [self._anchored()]
        while self._take("|"):
            alternatives.append(self._anchored())
        if self._at < len(self._text):
            raise self._wrong("a parenthesis is closed that was not opened")
        return f"^{'|'.join(alternatives)}$"

    def _anchored(self) -> str:
        anything = f"(?:{_written([(0, LAST)])})*"
        begin = "" if self._take("^") else anything
        body = self._sequence(0)
        end = "" if self._take("$") else anything
        return begin + body + end

    def _sequence(self, depth: int) -> str:
        parts = []
        while self._at < len(self._text) and self._peek() not in "|)":
            if self._peek() == "$" and depth == 0 and self._ends_alternative():
                break
            atom = self._atom(depth)
            count = self._count()
            parts.append(f"(?:{atom}){count}" if count else atom)
        return "".join(parts)

    def _ends_alternative(self) -> bool:
        return self._at + 1 == len(self._text) or self._text[self._at + 1] == "|"

    def _atom(self, depth: int) -> str:
        char = self._next()
        if char == "(":
            return self._group(depth + 1)
        if char == "[":
            return self._checked(self._bracket())
        if char == ".":
            return _written(_but(LINE_ENDS))
        if char in "*+?":
            raise self._wrong("there is nothing to repeat")
        if char in "^$":
            raise self._unsupported(f"{char} inside of it")
        if char in "{}]":
            raise self._wrong(f"{char} stands alone. Write \\{char}")
        if char == "\\":
            return self._checked(self._escape(in_class=False, negated=False))
        return self._checked([(ord(char), ord(char))])

    def _group(self, depth: int) -> str:
        if depth > MOST_NESTING:
            raise self._unsupported(f"groups nested deeper than {MOST_NESTING}")
        if self._take("?") and not self._take(":"):
            if not self._take("<") or self._peek() in ("=", "!"):
                raise self._unsupported("a look-around or a flag")
            while self._next() != ">":
                pass
        alternatives = [self._sequence(depth)]
        while self._take("|"):
            alternatives.append(self._sequence(depth))
        if not self._take(")"):
            raise self._wrong("a group is not closed")
        return f"(?:{'|'.join(alternatives)})"

    def _count(self) -> str:
        char = self._peek()
        if char in ("*", "+", "?"):
            self._at += 1
            count = char
        elif char == "{":
            count = self._braces()
        else:
            return ""
        self._take("?")
        if self._peek() in ("*", "+", "?", "{"):
            raise self._wrong("there is nothing to repeat")
        return count

    def _braces(self) -> str:
        end = self._text.find("}", self._at)
        least, comma, most = self._text[self._at + 1 : end if end > 0 else None].partition(",")
        numbers = [number for number in (least, most) if number]
        if end < 0 or not least or not all(n.isascii() and n.isdigit() for n in numbers):
            raise self._wrong("{ stands alone. Write \\{")
        if any(len(number) > 4 or int(number) > MOST_REPETITIONS for number in numbers):
            raise self._unsupported(f"more than {MOST_REPETITIONS} repetitions")
        if most and int(most) < int(least):
            raise self._wrong("the first number of repetitions is above the second")
        self._at = end + 1
        return f"{{{int(least)}{comma}{int(most) if most else ''}}}"

    def _bracket(self) -> Ranges:
        negated = self._take("^")
        ranges: Ranges = []
        while not self._take("]"):
            first = self._member(negated)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._member(negated)
                (low, top), (bottom, high) = first[0], last[-1]
                if low != top or bottom != high or low > high:
                    raise self._wrong("a range in brackets is upside down, or has no end")
                first = [(low, high)]
            ranges += first
        return _but(ranges) if negated else ranges

    def _member(self, negated: bool) -> Ranges:
        char = self._next()
        if char == "\\":
            return self._escape(in_class=True, negated=negated)
        return [(ord(char), ord(char))]

    def _escape(self, *, in_class: bool, negated: bool) -> Ranges:
        char = self._next()
        if char in "dws":
            return CLASSES[char] + (NOT_ASCII if negated else [])
        if char in "DWS":
            others = _but(CLASSES[char.lower()] + NOT_ASCII)
            return others + NOT_ASCII if negated else others
        if char in CONTROLS:
            return [(CONTROLS[char], CONTROLS[char])]
        if char == "b" and in_class:
            return [(8, 8)]
        if char == "x":
            return self._hexadecimal(2)
        if char == "u":
            return self._code_point()
        if char.isascii() and (char.isalnum() or char == "_"):
            raise self._unsupported(f"\\{char}")
        return [(ord(char), ord(char))]

    def _code_point(self) -> Ranges:
        if self._take("{"):
            end = self._text.find("}", self._at)
            (found,) = self._hexadecimal(max(end - self._at, 0))
            self._at += 1
            return [found]
        ((high, _),) = self._hexadecimal(4)
        if 0xD800 <= high < 0xDC00 and self._text.startswith("\\u", self._at):
            self._at += 2
            ((low, _),) = self._hexadecimal(4)
            if not 0xDC00 <= low < 0xE000:
                raise self._wrong("half of a surrogate pair is no character")
            high = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
        return [(high, high)]

    def _hexadecimal(self, n_digits: int) -> Ranges:
        digits = self._text[self._at : self._at + n_digits]
        if not 1 <= len(digits) == n_digits <= 8 or set(digits) - set("0123456789abcdefABCDEF"):
            raise self._wrong("an escape lacks its hexadecimal digits")
        self._at += n_digits
        value = int(digits, 16)
        if value > LAST:
            raise self._wrong("an escape is beyond the last character")
        return [(value, value)]

    def _checked(self, ranges: Ranges) -> str:
        written = _written(ranges)
        if not written:
            raise self._unsupported("a class without any character that JSON writes plainly")
        return written

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise self._wrong("it ends too soon")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, char: str) -> bool:
        taken = self._peek() == char
        self._at += taken
        return taken

    def _wrong(self, fault: str) -> InputError:
        where = f"{self._text[:80]!r} is no regular expression, at character {self._at}"
        return wrong(self._path, f"{where}: {fault}")

    def _unsupported(self, what: str) -> UnsupportedError:
        rule = f"{self._text[:80]!r} holds {what}, which no grammar can say"
        return unheeded(self._path, rule, "Write it in plainer terms.")


def _but(ranges: Ranges) -> Ranges:
    """All characters but those."""
    others: Ranges = []
    start = 0
    for first, last in sorted(ranges):
        if start < first:
            others.append((start, first - 1))
        start = max(start, last + 1)
    return [*others, (start, LAST)] if start <= LAST else others


def _written(ranges: Ranges) -> str:
    """How JSON writes one of these characters, as an expression; "" where it has no way."""
    # Controls, the quote, the backslash and surrogates do not stand for themselves.
    escaped: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)]
    themselves = _but(_but(ranges) + escaped)
    letters = [
        letter
        for code, letter in sorted(SHORT_ESCAPES.items())
        if any(first <= code <= last for first, last in ranges)
    ]
    forms = []
    if themselves:
        forms.append(f"[{''.join(_span(first, last) for first, last in themselves)}]")
    if letters:
        forms.append(f"{_code(0x5C)}[{''.join(_code(ord(letter)) for letter in letters)}]")
    return forms[0] if len(forms) == 1 and themselves else f"(?:{'|'.join(forms)})" if forms else ""


def _span(first: int, last: int) -> str:
    return _code(first) if first == last else f"{_code(first)}-{_code(last)}"


def _code(character: int) -> str:
    """As grammars and upstream's converter write any character."""
    return f"\\u{character:04X}" if character < 0x10000 else f"\\U{character:08X}"
