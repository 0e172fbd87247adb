"""The YAML head of a model card (README.md), as far as strings and lists of strings go."""

from __future__ import annotations

import re
from pathlib import Path

from phiggml.conversion.jsonfile import regular_size

__all__ = ["read_model_card"]

_LIMIT = 4 << 20
_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:[ \t]+(.*))?")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")


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
