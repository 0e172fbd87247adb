"""The YAML head of a model card (README.md): its strings and lists of strings, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from phiggml.conversion.jsonfile import regular_size

__all__ = ["card_head", "read_model_card"]

_LIMIT = 4 << 20
_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:[ \t]+(.*))?")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")
_PLAIN = re.compile(r"[A-Za-z][\w./+-]*", re.ASCII)
# What YAML reads as something else than a string.
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def _scalar(text: str) -> str | None:
    """A plain or quoted YAML string; None for what this reader leaves alone."""
    text = text.strip()
    if len(text) > 1 and text[0] in "'\"":
        end = text.find(text[0], 1)
        return text[1:end] if end > 0 else None
    text = text.split(" #", 1)[0].strip()
    return None if not text or text[0] in "|>&*!{[" or ": " in text else text


def _flow_list(text: str) -> list[str]:
    items = (_scalar(item) for item in text.strip()[1:-1].split(","))
    return [item for item in items if item]


def read_model_card(folder: Path) -> dict[str, str | list[str]]:
    """Reads the top-level keys of README.md's front matter that are strings or lists of strings.

    Nested values are passed over: nothing of them goes into a GGUF file. A folder without a card,
    or one whose card has no front matter, gives an empty mapping.
    """
    path = folder / "README.md"
    if not path.is_file() or regular_size(path) > _LIMIT:
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    card: dict[str, str | list[str]] = {}
    items: list[str] = []
    for line in lines[1 : lines.index("---", 1)]:
        key = _KEY.fullmatch(line)
        item = _ITEM.fullmatch(line)
        if key:
            items = []
            value = (key[2] or "").strip()
            scalar = _scalar(value)
            if value.startswith("[") and value.endswith("]"):
                card[key[1]] = _flow_list(value)
            elif scalar is not None:
                card[key[1]] = scalar
            elif not value:
                card[key[1]] = items
        elif item and (text := _scalar(item[1])):
            items.append(text)
    return {key: value for key, value in card.items() if value}


def _written(text: str) -> str | None:
    """The text as YAML that read_model_card reads the same; None where there is none."""
    if not text or not text.isprintable():
        return None
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if "'" not in text:
        return f"'{text}'"
    return None if '"' in text or "\\" in text else f'"{text}"'


def card_head(values: Mapping[str, str | list[str]]) -> tuple[str, set[str]]:
    """Writes the front matter of a model card.

    Args:
        values: strings and lists of strings by key.

    Returns:
        The text, with the lines around it; and the keys whose values are left out because they
        hold quotes of both kinds, line breaks or nothing.
    """
    lines, left_out = ["---"], set()
    for key, value in values.items():
        written = [_written(item) for item in ([value] if isinstance(value, str) else value)]
        if not written or None in written:
            left_out.add(key)
        elif isinstance(value, str):
            lines.append(f"{key}: {written[0]}")
        else:
            lines += [f"{key}:", *(f"- {item}" for item in written)]
    return "\n".join([*lines, "---", ""]), left_out
