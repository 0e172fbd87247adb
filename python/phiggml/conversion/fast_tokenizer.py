"""tokenizer.json: the tokenizer once more, for readers that do without sentencepiece."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from phiggml.conversion.sentencepiece import BYTE, NORMAL, USER_DEFINED, SentencePieceModel

__all__ = ["encode_fast_tokenizer"]

_SPACE = "\u2581"
# sentencepiece trains no longer ones, and the work grows with the square.
_LONGEST_PIECE = 512


def encode_fast_tokenizer(
    model: SentencePieceModel,
    tokens: Sequence[str],
    added: Mapping[int, Mapping[str, Any]],
    *,
    scheme: str = "each",
) -> bytes:
    """Writes a tokenizer.json that does what the sentencepiece model does.

    Args:
        model: pieces, scores and types.
        tokens: of the whole vocabulary, by id.
        added: id -> content and flags of each added token.
        scheme: which texts get a space in front: "each" between added tokens, if the model puts one
            there, or Metaspace's "always", "first" or "never".

    Source:
        The serialization of the tokenizers library (model BPE with byte_fallback), with the
        normalizer and decoder of Phi-3's releases: the space in front goes before each text
        between added tokens.
    """
    vocabulary = {piece: i for i, piece in enumerate(model.pieces)}
    count = len(vocabulary)
    last = max(added, default=0)
    if any(i not in added for i in range(count, last + 1)):
        # Readers number added tokens without holes; those in the vocabulary keep their ids.
        vocabulary |= {tokens[i]: i for i in range(count, last + 1)}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, added),
        **_spaces(scheme, prefix=model.add_dummy_prefix),
        "post_processor": None,
        "decoder": _decoder(prefix=model.add_dummy_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": BYTE in model.types,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(model),
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _spaces(scheme: str, *, prefix: bool) -> dict[str, Any]:
    """The normalizer or the pre-tokenizer that shows spaces and puts one in front."""
    if scheme != "each":
        metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme}
        return {"normalizer": None, "pre_tokenizer": {**metaspace, "split": False}}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    normalizer = {"type": "Sequence", "normalizers": [*prepend, replace]}
    return {"normalizer": normalizer, "pre_tokenizer": None}


def _decoder(*, prefix: bool) -> dict[str, Any]:
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {"type": "Sequence", "decoders": [*decoders, strip] if prefix else decoders}


def _added_tokens(
    model: SentencePieceModel, added: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Added tokens in the order of their ids, and user-defined pieces, which are whole as well."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    defined: dict[int, Mapping[str, Any]] = {
        i: {"content": model.pieces[i], **plain}
        for i, kind in enumerate(model.types)
        if kind == USER_DEFINED
    }
    chosen = {**defined, **added}
    return [
        {
            "id": i,
            "content": chosen[i]["content"],
            **{flag: chosen[i][flag] for flag in plain},
        }
        for i in sorted(chosen)
    ]


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, in the order of the third one's score."""
    normal = {
        piece
        for piece, kind in zip(model.pieces, model.types, strict=True)
        if kind == NORMAL and len(piece) <= _LONGEST_PIECE
    }
    ranked = sorted(range(len(model.pieces)), key=lambda i: (-model.scores[i], i))
    merges = []
    for piece in (model.pieces[i] for i in ranked):
        if piece in normal:
            splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
            merges += [(a, b) for a, b in splits if a in normal and b in normal]
    return merges
