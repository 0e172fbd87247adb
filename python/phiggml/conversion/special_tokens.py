"""Which ids begin, end and pad a text, what is added to a prompt, and the chat templates."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import is_text
from phiggml.conversion.jsonfile import SMALL_LIMIT, read_bytes, read_object
from phiggml.conversion.vocabulary import END_OF_TEXT, END_OF_TURN, Vocabulary
from phiggml.errors import FormatError

__all__ = ["END_IDS", "TOKEN_KINDS", "special_token_metadata"]

END_IDS = "phiggml.tokenizer.end_ids"
"""Tokens at which generation ends, for which llama.cpp's format has no key left."""

# config.json's name of each special token, and GGUF's.
TOKEN_KINDS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # the format spells it so
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
# Texts of tokens that llama.cpp ends at by itself, whatever a file's keys say.
_KNOWN_ENDS = frozenset(
    {END_OF_TURN, END_OF_TEXT, "<|im_end|>", "</s>", "<|eot_id|>", "<|eom_id|>"}
)
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits)


def special_token_metadata(
    vocabulary: Vocabulary,
    config: dict[str, Any],
    generation: dict[str, Any],
    *,
    faults: Faults,
) -> dict[str, Any]:
    """GGUF keys for special tokens and templates.

    Args:
        vocabulary: the tokens.
        config: config.json.
        generation: generation_config.json, or an empty mapping.
        faults: receives ids that are no tokens.

    Returns:
        metadata. Generation ends at eos and at tokens that llama.cpp knows by their texts, such as
        `<|end|>`; of others that config.json or generation_config.json name, eom and eot hold two,
        and a key of our own the rest.
    """
    ids = _special_ids(vocabulary, config, faults)
    ends = _end_ids(vocabulary, config, generation, faults)
    if "eos" not in ids and ends:
        ids["eos"] = ends[0]
    elif "eos" not in ids and not vocabulary.has_default_end:
        if END_OF_TEXT in vocabulary.ids:
            ids["eos"] = vocabulary.ids[END_OF_TEXT]
        else:
            path = vocabulary.folder / "config.json"
            faults.add(path, f"names no eos_token_id, and there is no token {END_OF_TEXT!r}.")
    metadata: dict[str, Any] = {
        f"tokenizer.ggml.{TOKEN_KINDS[kind]}_token_id": token_id for kind, token_id in ids.items()
    }
    further = [
        token_id
        for token_id in ends
        if token_id != ids.get("eos") and vocabulary.tokens[token_id] not in _KNOWN_ENDS
    ]
    for key, token_id in zip(("eom", "eot"), further, strict=False):
        metadata[f"tokenizer.ggml.{key}_token_id"] = token_id
    if further[2:]:
        metadata[END_IDS] = np.array(further[2:], dtype=np.int32)
    for kind, added in _added_to_prompts(vocabulary).items():
        metadata[f"tokenizer.ggml.add_{kind}_token"] = added
        if added and kind not in ids:
            faults.add(
                vocabulary.folder / "tokenizer_config.json",
                f"says that {kind} is added to prompts, and names no {kind}_token.",
            )
    metadata.update(_chat_templates(vocabulary, faults))
    return metadata


def _special_ids(vocabulary: Vocabulary, config: dict[str, Any], faults: Faults) -> dict[str, int]:
    ids: dict[str, int] = {}
    for kind in TOKEN_KINDS:
        token = vocabulary.config.get(f"{kind}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token in vocabulary.ids:
            ids[kind] = vocabulary.ids[token]
            continue
        token_id = config.get(f"{kind}_token_id")
        if type(token_id) is not int:
            continue
        if 0 <= token_id < len(vocabulary.tokens):
            ids[kind] = token_id
        elif kind != "pad":
            faults.add(
                vocabulary.folder / "config.json",
                f"{kind}_token_id = {token_id}: must be below vocab_size {len(vocabulary.tokens)}.",
            )
    return ids


def _end_ids(
    vocabulary: Vocabulary, config: dict[str, Any], generation: dict[str, Any], faults: Faults
) -> list[int]:
    """Every id that ends generation, `<|end|>` first, each once."""
    ends: list[int] = []
    if END_OF_TURN in vocabulary.ids:
        ends.append(vocabulary.ids[END_OF_TURN])
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        given = values.get("eos_token_id")
        for token_id in given if isinstance(given, list) else [given]:
            if token_id is None or token_id in ends:
                continue
            if type(token_id) is int and 0 <= token_id < len(vocabulary.tokens):
                ends.append(token_id)
            elif isinstance(given, list) or name != "config.json":
                faults.add(
                    vocabulary.folder / name,
                    f"eos_token_id holds {token_id!r}, which is no token's id.",
                )
    return ends


def _added_to_prompts(vocabulary: Vocabulary) -> dict[str, bool]:
    """Whether bos and eos are put around a prompt: tokenizer.json's template, else the flags."""
    added: dict[str, bool] = {}
    processors = list(_post_processors(vocabulary.fast))
    if any(processor.get("type") == "ByteLevel" for processor in processors):
        added = {"bos": False, "eos": False}
    template = _single_template(processors)
    for kind, place in (("bos", 0), ("eos", -1)):
        if len(template) > 1:
            end = template[place]
            special = end.get("SpecialToken") if isinstance(end, dict) else None
            if isinstance(special, dict) and special.get("id"):
                # One that is not the model's own cannot be said; nothing is added then.
                name = vocabulary.config.get(f"{kind}_token")
                name = name.get("content") if isinstance(name, dict) else name
                added[kind] = name is None or name == special["id"]
        flag = vocabulary.config.get(f"add_{kind}_token")
        if kind not in added and isinstance(flag, bool):
            added[kind] = flag
        if template:
            # Readers would add bos without a word; the template shows that nothing is added.
            added.setdefault(kind, False)
    return added


def _post_processors(fast: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps that follow the splitting in tokenizer.json."""
    post = fast.get("post_processor")
    steps = post.get("processors", [post]) if isinstance(post, dict) else []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            yield step


def _single_template(processors: list[dict[str, Any]]) -> list[Any]:
    """What tokenizer.json's post-processor makes of one text: sequence and special tokens."""
    for processor in processors:
        if processor.get("type") == "TemplateProcessing":
            single = processor.get("single")
            return single if isinstance(single, list) else []
    return []


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, SMALL_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"convert: {path}: byte {error.start}: is not UTF-8.",
            path=str(path),
            offset=error.start,
        ) from None


def _stored_template(vocabulary: Vocabulary) -> tuple[Path, Any]:
    """The chat template and where it was found; chat_template.jinja wins, as in transformers."""
    folder = vocabulary.folder
    path = folder / "chat_template.jinja"
    if path.exists():
        named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if not named:
            return path, _read_text(path)
        templates = [{"name": "default", "template": _read_text(path)}]
        templates += [{"name": p.stem, "template": _read_text(p)} for p in named]
        return path, templates
    inline = vocabulary.config.get("chat_template")
    path = folder / "chat_template.json"
    if inline is None and path.exists():
        return path, read_object(path).get("chat_template")
    return folder / "tokenizer_config.json", inline


def _chat_templates(vocabulary: Vocabulary, faults: Faults) -> dict[str, Any]:
    path, stored = _stored_template(vocabulary)
    if stored is None:
        return {}
    if is_text(stored):
        return {"tokenizer.chat_template": stored}
    metadata: dict[str, Any] = {}
    for entry in stored if isinstance(stored, list) else [None]:
        name, template = (
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        )
        if not is_text(name) or not name or not is_text(template):
            faults.add(path, "chat_template must be a string or a list of {name, template}.")
            return {}
        name = "".join(c if c in _NAME_CHARACTERS else "_" for c in name)
        suffix = "" if name == "default" else f".{name}"
        metadata[f"tokenizer.chat_template{suffix}"] = template
    others = [key.split(".", 2)[2] for key in metadata if key.count(".") == 2]
    if others:
        metadata["tokenizer.chat_templates"] = others
    return metadata
