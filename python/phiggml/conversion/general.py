"""general.* metadata: names, licence, tags and sampling defaults of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phiggml.conversion.fields import INT32_MAX, is_number, is_text, shortest
from phiggml.conversion.model_card import read_model_card
from phiggml.conversion.naming import named_for_tokenizer, parse_model_id, size_label, title
from phiggml.gguf_value import GGUFStrings

__all__ = ["card_metadata", "general_card", "general_metadata", "general_sampling"]

# generation_config.json's name and GGUF's; all but top_k are FLOAT32.
_SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temperature": "temp",
    "repetition_penalty": "penalty_repeat",
}
# Parts of the name, as keys of general.* and of a model card alike.
_NAMED = frozenset({"name", "version", "organization", "finetune", "basename", "size_label"})
# The model card's name and GGUF's.
_LICENSES = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for source, target in _SAMPLING.items():
        value = generation.get(source)
        if not is_number(value) or abs(value) > INT32_MAX:
            continue
        as_stored = np.int32(value) if target == "top_k" else np.float32(value)
        metadata[f"general.sampling.{target}"] = as_stored
    return metadata


def _names(
    own: str, config: dict[str, Any], card: dict[str, Any], *, parameters: int, is_id: bool
) -> dict[str, str]:
    """Parts of the name: config.json's _name_or_path if it is an id, completed by its own name.

    Its own name is the folder's, or the id of the hub, which goes before what config.json says.

    A card that gives a name and a size label, as an exported checkpoint's does, leaves nothing
    to guess.
    """
    given_parts = {k: v for k, v in card.items() if k in _NAMED and isinstance(v, str)}
    if {"name", "size_label"} <= given_parts.keys():
        return given_parts
    ids = [own]
    given = config.get("_name_or_path")
    if isinstance(given, str) and given and is_text(given) and given.count("/") <= 1:
        ids.insert(1 if is_id else 0, given)
    parts: dict[str, str] = {}
    for model_id in filter(is_text, ids):
        name = parse_model_id(model_id, parameters)
        found = {
            "name": title(name.name) if name.name else None,
            "version": name.version,
            "organization": title(name.organization) if name.organization else None,
            "finetune": name.finetune,
            "basename": name.basename,
            "size_label": name.size,
        }
        for key, value in found.items():
            if value:
                parts.setdefault(key, value)
    parts.setdefault("name", "Model")
    parts.setdefault("size_label", size_label(parameters))
    return parts


def card_metadata(card: dict[str, Any]) -> dict[str, Any]:
    """What a model card's head says, as general.*: licence, tags and languages."""

    def listed(*keys: str) -> list[str]:
        values = (card.get(key, []) for key in keys)
        return [item for v in values for item in ([v] if isinstance(v, str) else v)]

    metadata: dict[str, Any] = {}
    for key, target in _LICENSES.items():
        if key in card:
            metadata[target] = ",".join(listed(key))
    for target, keys in (("tags", ("tags", "pipeline_tag")), ("languages", ("language",))):
        if values := listed(*keys):
            metadata[f"general.{target}"] = values
    return metadata


def general_metadata(
    folder: Path,
    config: dict[str, Any],
    generation: dict[str, Any],
    *,
    parameters: int,
    strips: bool,
    model_id: str | None = None,
) -> dict[str, Any]:
    """The general.* keys, without file_type and quantization_version.

    Args:
        folder: the checkpoint.
        config: config.json.
        generation: generation_config.json, or an empty mapping.
        parameters: elements of all tensors together.
        strips: whether white space right of special tokens vanishes; decides the name's spelling.
        model_id: "owner/name", if it is known by an id.
    """
    card = read_model_card(folder)
    own = folder.resolve().name if model_id is None else model_id
    names = _names(own, config, card, parameters=parameters, is_id=model_id is not None)
    names["name"] = named_for_tokenizer(names["name"], strips=strips)
    metadata: dict[str, Any] = {"general.type": "model", **_sampling(generation)}
    metadata.update({f"general.{key}": value for key, value in names.items()})
    metadata.update(card_metadata(card))
    return metadata


def general_sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that generation_config.json can hold, from general.sampling.*."""
    found: dict[str, Any] = {}
    for target, source in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{source}")
        if is_number(value):
            found[target] = value if type(value) is int else shortest(value)
    return found


def general_card(metadata: Mapping[str, Any]) -> dict[str, tuple[str, str | list[str]]]:
    """What a model card's head can hold of general.*: card's key -> (GGUF's key, value)."""
    card: dict[str, tuple[str, str | list[str]]] = {}
    for key in metadata:
        name = key.removeprefix("general.")
        if key.startswith("general.") and name in _NAMED and isinstance(metadata[key], str):
            card[name] = key, metadata[key]
    for name, key in _LICENSES.items():
        if isinstance(metadata.get(key), str):
            card[name] = key, metadata[key]
    for name, key in (("tags", "general.tags"), ("language", "general.languages")):
        values = metadata.get(key)
        if isinstance(values, GGUFStrings | list) and all(map(is_text, values)):
            card[name] = key, list(values)
    return card
