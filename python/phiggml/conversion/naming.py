"""What a model is called: ids of Hugging Face taken apart, titles, and size labels.

Source: the naming convention of GGUF files (docs/gguf.md of ggml-org/ggml), applied to Hugging Face
model ids as llama.cpp's converter applies it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "ModelName",
    "name_strips",
    "named_for_tokenizer",
    "parse_model_id",
    "size_label",
    "title",
]

_VERSION = re.compile(r"(?:v|iter)?\d+(?:\.\d+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q\d(?:_\w)*|b?fp?(?:16|32)", re.IGNORECASE)
_SIZE = re.compile(
    r"(?:a|\d+x)?\d+(?:[._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl", re.IGNORECASE
)
_TUNING = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class ModelName:
    """A model id taken apart; what the id does not say is None."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size: str | None = None


def title(text: str) -> str:
    """ "Phi-3-mini-4k" -> "Phi 3 Mini 4k"."""
    words = text.strip().replace("-", " ").split()
    return " ".join(
        w.title() if w.islower() and not re.match(r"v\d+(\.\d+)*$|\d", w) else w for w in words
    )


def size_label(parameters: int) -> str:
    """A count in two digits or more: 3821079552 -> "3.8B"."""
    # Beyond, not from, each step: 1e6 itself is still "1000K".
    unit = next((u for u in "TBM" if parameters > _SCALES[u]), "K")
    value = parameters / _SCALES[unit]
    digits = len(str(round(value)).lstrip("0"))
    return f"{value:.{max(2 - digits, 0)}f}{unit}"


def _normal_size(part: str) -> str:
    """ "7b1" -> "7.1B", "1_5b" -> "1.5B"; words such as "mini" stay."""
    part = part.replace("_", ".")
    if part[-1].isdecimal():
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"
    if len(part) > 1 and part[-2].isdecimal():
        part = part[:-1] + part[-1].upper()
    return part


def _is_far_from(part: str, parameters: int) -> bool:
    """Whether a size in a name cannot be the number of parameters (so it is a context length)."""
    try:
        value = float(part[:-1]) * _SCALES[part[-1]]
    except (ValueError, KeyError):
        return False
    return parameters > 0 and abs(value - parameters) > 7 * parameters // 8


def _classify(parts: list[str], parameters: int) -> list[str | None]:
    """Names what each part is; rewrites sizes and encodings in `parts` to their usual spelling."""
    kinds: list[str | None] = []
    for i, part in enumerate(parts):
        kind = None
        if _VERSION.fullmatch(part):
            kind = "version"
        elif _ENCODING.fullmatch(part):
            kind, parts[i] = "encoding", part.upper()
        elif i > 0 and _SIZE.fullmatch(part):
            kind, parts[i] = "size", _normal_size(part)
            if _is_far_from(parts[i], parameters):
                kind, parts[i] = "finetune", parts[i][:-1] + parts[i][-1].lower()
        elif i > 0 and _TUNING.fullmatch(part):
            kind = "finetune"
        kinds.append(kind)
    sizes = [p for p, k in zip(parts, kinds, strict=True) if k == "size"]
    if any(c.isdecimal() for size in sizes for c in size):
        # A number says more than a word such as "mini".
        kinds = [
            None if k == "size" and p.isalpha() else k for p, k in zip(parts, kinds, strict=True)
        ]
    return kinds


def _base_length(parts: list[str], kinds: list[str | None]) -> int:
    """How many leading parts make the base name: words and the versions between them."""
    length = 0
    for part, kind in zip(parts, kinds, strict=True):
        if kind != "version" and not (kind is None and part[0].isalpha()):
            break
        length += 1
    # A version belongs to the base name only inside it; trailing ones are the version.
    if length == len(parts):
        while length and kinds[length - 1] == "version":
            length -= 1
    return length


def parse_model_id(model_id: str, parameters: int = 0) -> ModelName:
    """Takes "microsoft/Phi-3-mini-4k-instruct" apart.

    Args:
        model_id: an id, with or without the organization, or a plain title.
        parameters: of the model, to tell a size from a context length; 0 when unknown.
    """
    if " " in model_id or not model_id:
        return ModelName(name=model_id or None)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parts = [part for part in name.split("-") if part]
    kinds = _classify(parts, parameters)
    base = _base_length(parts, kinds)
    kinds = [k or "finetune" if i >= base else "base" for i, k in enumerate(kinds)]

    def joined(kind: str, *, unique: bool = False) -> str | None:
        chosen = [p for p, k in zip(parts, kinds, strict=True) if k == kind]
        return "-".join(dict.fromkeys(chosen) if unique else chosen) or None

    size, finetune, version = joined("size", unique=True), joined("finetune"), joined("version")
    basename = joined("base") if size or finetune or version else None
    if organization.startswith("."):
        organization = ""
    return ModelName(name, organization or None, basename, finetune, version, size)


def name_strips(name: str) -> bool:
    """Whether llama.cpp takes the name for Phi-3's: it then strips white space right of tokens."""
    return re.search(r"phi-?3", name, re.IGNORECASE) is not None


def named_for_tokenizer(name: str, *, strips: bool) -> str:
    """Makes a name say Phi-3 if, and only if, white space right of special tokens vanishes.

    llama.cpp decides by the name: it strips where general.name holds "phi-3" or "phi3" in any case.
    So "Phi 3 Mini" becomes "Phi-3 Mini", and a name without Phi 3 gets it in front; where the
    tokenizer keeps that white space, "Phi-3" and "Phi3" become "Phi 3".
    """
    if not strips:
        return re.sub(r"(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)
    if name_strips(name):
        return name
    spelled, count = re.subn(r"(phi)[ _.]+(3)", r"\1-\2", name, count=1, flags=re.IGNORECASE)
    return spelled if count else f"Phi-3 {name}".rstrip()
