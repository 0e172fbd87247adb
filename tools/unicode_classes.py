"""Writes csrc/unicode_class_table.h: the classes of characters that tokenizers split text by.

The tokenizers library is asked about every code point, so that the table is of the version of
Unicode that its expressions have: python tools/unicode_classes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

TARGET = Path(__file__).resolve().parent.parent / "csrc" / "unicode_class_table.h"
CLASSES = {
    "upper": r"[\p{Lu}\p{Lt}]",
    "lower": r"\p{Ll}",
    "other_letter": r"[\p{Lm}\p{Lo}]",
    "mark": r"\p{M}",
    "number": r"\p{N}",
    "space": r"\s",
}
EVERY = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HEAD = """\
// Made by tools/unicode_classes.py. Each entry: first code point << 8 | bits of unicode_class.h.
#pragma once

#include <cstdint>

namespace phiggml {

// clang-format off
constexpr std::uint32_t unicode_class_table[] = {
"""


def matching(expression: str) -> set[str]:
    split = pre_tokenizers.Split(Regex(expression), "removed", invert=True)
    return {text for text, _ in split.pre_tokenize_str("".join(EVERY))}


def word_characters() -> set[str]:
    """Those beside which a token that must be a single word is not found."""
    tokenizer = Tokenizer(WordLevel({"x": 0, "?": 1}, unk_token="?"))
    tokenizer.add_tokens([AddedToken("x" * 3, single_word=True, normalized=False)])
    texts = ["xxx" + character for character in EVERY]
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return {c for c, encoding in zip(EVERY, found, strict=True) if 2 not in encoding.ids}


def runs() -> Iterator[tuple[int, int]]:
    sets = [matching(expression) for expression in CLASSES.values()] + [word_characters()]
    last = -1
    for character in EVERY:
        bits = sum(1 << i for i, members in enumerate(sets) if character in members)
        if bits != last:
            yield ord(character), bits
        last = bits


def main() -> None:
    entries = [f"0x{code << 8 | bits:x}," for code, bits in runs()]
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) < 119:
            lines[-1] += entry
        else:
            lines.append(entry)
    TARGET.write_text(
        HEAD + "\n".join(lines) + "\n};\n// clang-format on\n\n}  // namespace phiggml\n"
    )
    print(f"{len(entries)} runs, {len(lines)} lines")


if __name__ == "__main__":
    main()
