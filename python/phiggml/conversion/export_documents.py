"""The files of an exported checkpoint that hold no weights, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from phiggml.conversion.export_tokenizer import ExportedTokenizer
from phiggml.conversion.general import general_card, general_sampling
from phiggml.conversion.model_card import card_head

__all__ = [
    "encode_json",
    "generation_config",
    "model_card",
    "tokenizer_documents",
    "weight_index",
]

# repetition_penalty says nothing about whether a reader samples at all.
_SAMPLED = frozenset({"temperature", "top_k", "top_p", "min_p"})


def encode_json(values: Mapping[str, Any]) -> bytes:
    """A JSON object, its own keys sorted."""
    ordered = dict(sorted(values.items()))
    text = json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def tokenizer_documents(tokenizer: ExportedTokenizer, context: int) -> dict[str, bytes]:
    """The tokenizer's files by name; `context` is the greatest length of a text in tokens."""
    documents = {"tokenizer.model": tokenizer.model, "tokenizer.json": tokenizer.fast}
    if tokenizer.added:
        documents["added_tokens.json"] = encode_json(tokenizer.added)
    config = {**tokenizer.config, "model_max_length": context}
    documents["tokenizer_config.json"] = encode_json(config)
    documents["special_tokens_map.json"] = encode_json(tokenizer.special)
    return documents


def generation_config(tokenizer: ExportedTokenizer, metadata: Mapping[str, Any]) -> bytes:
    """generation_config.json: ids, and sampling defaults where the GGUF file has some."""
    sampling = general_sampling(metadata)
    fields: dict[str, Any] = {
        name: token_id for name, token_id in tokenizer.ids.items() if token_id is not None
    }
    if tokenizer.ends:
        ends = tokenizer.ends
        fields["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    if _SAMPLED & sampling.keys():
        fields["do_sample"] = True
    return encode_json({**fields, **sampling})


def model_card(metadata: Mapping[str, Any], origin: str) -> tuple[bytes, set[str]]:
    """README.md, whose head keeps the general.* metadata that a model card has words for.

    Args:
        metadata: GGUF keys and values.
        origin: what the weights come from, as a sentence.

    Returns:
        The bytes; and the GGUF keys whose values the head cannot hold.
    """
    card = general_card(metadata)
    head, left_out = card_head({name: value for name, (_, value) in card.items()})
    name = metadata.get("general.name")
    shown = name if isinstance(name, str) and name.isprintable() else "A Phi model"
    text = f"{head}# {shown}\n\n{origin}\n"
    return text.encode(), {card[name][0] for name in left_out}


def weight_index(files: Mapping[str, str], nbytes: int) -> bytes:
    """model.safetensors.index.json.

    Args:
        files: tensor -> file.
        nbytes: of all tensors together.
    """
    weight_map = dict(sorted(files.items()))
    return encode_json({"metadata": {"total_size": nbytes}, "weight_map": weight_map})
