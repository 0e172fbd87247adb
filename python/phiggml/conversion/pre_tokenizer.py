"""How a BPE tokenizer splits text into words: tokenizer.json's pattern and llama.cpp's name.

Source: the pre_tokenizer and normalizer objects of the tokenizers library's serialization, and the
names in llama_vocab::impl::load of llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from phiggml.errors import UnsupportedError

__all__ = ["GPT2", "KNOWN", "name_pre_tokenizer"]

GPT2 = "gpt-2"

# The alternatives of the known patterns. Spellings on one line match the same texts: a possessive
# quantifier there has nothing to give back, and one white-space character at the end of a pattern
# is all that is left.
_LOWER_CASE = ("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)")
_ANY_CASE = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
_WORD = tuple(rf"[^\r\n\p{{L}}\p{{N}}]{end}" for end in (r"?\p{L}+", r"?+\p{L}+", r"?+\p{L}++"))
_SYMBOLS = (r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]++")
_SYMBOLS_AND_BREAKS = tuple(symbols + r"[\r\n]*" for symbols in _SYMBOLS)
_BREAKS = (r"\s*[\r\n]+", r"\s*[\r\n]")
_SPACES = (r"\s+(?!\S)",)
_REST = (r"\s+", r"\s")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = tuple(
    (rf"[^\r\n\p{{L}}\p{{N}}]?{word}(?i:'s|'t|'re|'ve|'m|'ll|'d)?",)
    for word in (rf"{_UPPER}*{_LOWER}+", rf"{_UPPER}+{_LOWER}*")
)

_PATTERNS: dict[str, tuple[tuple[str, ...], ...]] = {
    GPT2: (_LOWER_CASE, (r" ?\p{L}+",), (r" ?\p{N}+",), _SYMBOLS, _SPACES, _REST),
    # cl100k: DBRX was the first model with it that llama.cpp knew, and Phi-4 is named after it.
    "dbrx": (
        _ANY_CASE,
        _WORD,
        (r"\p{N}{1,3}",),
        _SYMBOLS_AND_BREAKS,
        _BREAKS,
        _SPACES,
        _REST,
    ),
    "qwen2": (_ANY_CASE, _WORD, (r"\p{N}",), _SYMBOLS_AND_BREAKS, _BREAKS, _SPACES, _REST),
    # o200k: Phi-4-mini.
    "gpt-4o": (
        *_CASED,
        (r"\p{N}{1,3}",),
        (r" ?[^\s\p{L}\p{N}]+[\r\n/]*",),
        _BREAKS,
        _SPACES,
        _REST,
    ),
}
# The names under which a word that is a token stays whole without being merged.
_WITHOUT_MERGES = {"dbrx": "llama-bpe"}
KNOWN = (*_PATTERNS, *_WITHOUT_MERGES.values())
_SHOWN = 400


def _matches(pattern: str, alternatives: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the pattern is one spelling of each alternative, in their order."""
    ends = {0}
    for i, spellings in enumerate(alternatives):
        last = i == len(alternatives) - 1
        found = {
            end + len(spelling)
            for end in ends
            for spelling in spellings
            if pattern.startswith(spelling, end)
        }
        if last:
            return len(pattern) in found
        ends = {end + 1 for end in found if pattern.startswith("|", end)}
    return False


def _refuse(path: Path, what: str) -> NoReturn:
    raise UnsupportedError(
        f"convert: {path}: {what}. Known ways to split text are: {', '.join(KNOWN)}."
    )


def _flattened(component: Any) -> Iterator[Any]:
    """The steps of a pre-tokenizer or normalizer in order, those of sequences one by one."""
    waiting = [component]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict) and step.get("type") == "Sequence":
            inner = step.get("pretokenizers", step.get("normalizers"))
            waiting += reversed(inner) if isinstance(inner, list) else [inner]
        elif step is not None:
            yield step


def _pattern(steps: list[Any], path: Path) -> str | None:
    """The regular expression that splits; None stands for the one within ByteLevel."""
    *splits, last = steps if steps else [None]
    if not isinstance(last, dict) or last.get("type") != "ByteLevel":
        _refuse(path, "its pre-tokenizer does not end with ByteLevel")
    if last.get("add_prefix_space", True):
        _refuse(path, "its pre-tokenizer puts a space in front of texts, which llama.cpp does not")
    if not splits and last.get("use_regex", True):
        return None
    if len(splits) != 1 or last.get("use_regex", True):
        _refuse(path, f"its pre-tokenizer splits {len(steps)} times")
    split = splits[0]
    if not isinstance(split, dict) or split.get("type") != "Split":
        kind = split.get("type") if isinstance(split, dict) else split
        _refuse(path, f"its pre-tokenizer begins with {str(kind)[:_SHOWN]!r}")
    behavior = (split.get("behavior"), bool(split.get("invert")))
    # The known patterns match every character, so nothing lies between their matches.
    if behavior not in (("Removed", True), ("Isolated", True), ("Isolated", False)):
        _refuse(path, f"its pre-tokenizer splits in the manner {behavior[0]!r}")
    pattern = split.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(expression, str):
        _refuse(path, f"its pre-tokenizer splits at {str(pattern)[:_SHOWN]!r}")
    return expression


def name_pre_tokenizer(fast: dict[str, Any], path: Path, *, ignore_merges: bool) -> str:
    """llama.cpp's name for the way in which a tokenizer splits text.

    Args:
        fast: tokenizer.json.
        path: of that file, for errors.
        ignore_merges: whether words that are tokens stay whole without being merged.

    Raises:
        UnsupportedError: llama.cpp knows no such way, or another normalization is wanted.
    """
    for step in _flattened(fast.get("normalizer")):
        kind = step.get("type") if isinstance(step, dict) else step
        _refuse(path, f"its normalizer {str(kind)[:_SHOWN]!r} changes texts; llama.cpp has none")
    pattern = _pattern(list(_flattened(fast.get("pre_tokenizer"))), path)
    names = [
        n for n, known in _PATTERNS.items() if pattern is not None and _matches(pattern, known)
    ]
    if not names and pattern is not None:
        _refuse(path, f"its split pattern {pattern[:_SHOWN]!r} is unknown")
    name = names[0] if names else GPT2
    if not ignore_merges:
        return name
    if name not in _WITHOUT_MERGES:
        _refuse(path, f"it ignores merges, which llama.cpp does not with the split {name!r}")
    return _WITHOUT_MERGES[name]
