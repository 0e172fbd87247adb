"""A model's vocabulary: what llama.cpp asserts of it, or takes too long or too much memory for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from phiggml.model_check_metadata import CheckedMetadata

__all__ = ["check_vocabulary"]

_NO_VOCABULARY = ("no_vocab", "none")

_NEED_MERGES = ("gpt2", "hybriddna", "whitespace", "gemma4")

MOST_TOKENS = 1 << 24
"""Of a model without a vocabulary, for each of which upstream keeps a record all the same."""

_NO_TOKEN = 2**32 - 1  # what some converters write for a token that does not exist

_TOKEN_IDS = tuple(
    f"tokenizer.ggml.{name}_token_id"
    for name in (
        "bos",
        "eos",
        "eot",
        "eom",
        "unknown",
        "seperator",
        "padding",
        "mask",
        "fim_pre",
        "fim_suf",
        "fim_mid",
        "fim_pad",
        "fim_rep",
        "fim_sep",
        "prefix",
        "suffix",
        "middle",
    )
)
_FLAGS = tuple(
    f"tokenizer.ggml.{name}"
    for name in (
        "add_bos_token",
        "add_eos_token",
        "add_sep_token",
        "add_space_prefix",
        "remove_extra_whitespaces",
    )
)

# Ids of added tokens that have a flag of the tokenizers library's, and of those that end an answer.
_FLAGGED = tuple(
    f"phiggml.tokenizer.{name}"
    for name in ("lstrip", "rstrip", "single_word", "normalized", "end_ids")
)

_PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>")

# Upstream's work and memory for a token grow with the square of its length where it is spelt out
# byte by byte, and in PLaMo's table with the cube. The largest vocabularies of today have sums of
# squares of 2e7 (262144 tokens), so these bounds leave room, and keep the load to seconds.
_MOST_WORK = {2: 1 << 28, 3: 1 << 30}

_BYTE = 6  # the token type
_SPELL_BYTES = ("llama", "t5", "gpt2", "hybriddna", "whitespace", "gemma4", "bert")


def check_vocabulary(metadata: CheckedMetadata) -> int | None:
    """Gathers the faults of the vocabulary.

    Args:
        metadata: the model's.

    Returns:
        How many tokens there are, or None when that cannot be said.

    Cost:
        Decodes all tokens once.

    Source:
        llama_vocab::impl::load in llama.cpp's llama-vocab.cpp.
    """
    metadata.require("tokenizer.ggml.model")
    metadata.text("tokenizer.ggml.pre")
    for key in _FLAGS:
        metadata.flag(key)
    kind = metadata.text("tokenizer.ggml.model")
    if kind is None:
        return None
    if kind in _NO_VOCABULARY:
        return metadata.count(".vocab_size", most=MOST_TOKENS)
    metadata.require("tokenizer.ggml.tokens")
    strings = metadata.texts("tokenizer.ggml.tokens")
    types = metadata.numbers("tokenizer.ggml.token_type", "INT32")
    scores = metadata.numbers("tokenizer.ggml.scores", "FLOAT32", "INT32")
    metadata.numbers("tokenizer.ggml.suppress_tokens", "INT32")
    metadata.texts("tokenizer.ggml.merges")
    for key in _FLAGGED:
        metadata.numbers(key, "INT32")
    metadata.text("phiggml.tokenizer.prepend_scheme")
    if kind in _NEED_MERGES and metadata.text("tokenizer.ggml.pre") != "kimi-k2":
        metadata.require("tokenizer.ggml.merges")
    if strings is None:
        return None
    n_tokens = len(strings)
    if n_tokens == 0:
        metadata.fault("tokenizer.ggml.tokens", "is empty: a vocabulary has at least one token")
    _check_lengths(metadata, n_tokens, types, scores)
    _check_token_ids(metadata, n_tokens)
    tokens = list(strings)
    _check_texts(metadata, kind, tokens)
    _check_name(metadata, tokens)
    if types is not None:
        _check_bytes(metadata, kind, tokens, np.flatnonzero(types[:n_tokens] == _BYTE))
    if metadata.text("tokenizer.ggml.pre") == "whitespace" and kind != "whitespace":
        metadata.fault(
            "tokenizer.ggml.pre", f"is 'whitespace', which is not for the model {kind!r}"
        )
    return n_tokens


def _check_lengths(
    metadata: CheckedMetadata,
    n_tokens: int,
    types: np.ndarray[Any, Any] | None,
    scores: np.ndarray[Any, Any] | None,
) -> None:
    for name, values in (("token_type", types), ("scores", scores)):
        if values is not None and len(values) < n_tokens:
            metadata.fault(
                f"tokenizer.ggml.{name}", f"has {len(values)} entries for {n_tokens} tokens"
            )
    if scores is not None and np.isnan(scores).any():
        metadata.fault("tokenizer.ggml.scores", "has NaN, by which nothing can be ordered")


def _check_token_ids(metadata: CheckedMetadata, n_tokens: int) -> None:
    for key in _TOKEN_IDS:
        token = metadata.count(key)
        if token is not None and token >= n_tokens and token != _NO_TOKEN:
            metadata.fault(
                key,
                f"is {token}, beyond the vocabulary of {n_tokens} tokens",
                "Correct or remove it with phiggml gguf set or unset.",
            )


def _check_texts(metadata: CheckedMetadata, kind: str, tokens: Sequence[str]) -> None:
    key = "tokenizer.ggml.tokens"
    # Upstream ends a text at NUL and names empty ones; then it asserts that all are distinct.
    if "" in tokens or "\0" in "".join(tokens):
        tokens = [token.partition("\0")[0] or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        first, second = _first_twins(tokens)
        metadata.fault(key, f"has {tokens[first][:40]!r} twice, as tokens {first} and {second}")
    power = 3 if kind.startswith("plamo") else 2
    lengths = np.fromiter(map(len, tokens), np.float64, len(tokens))
    if (lengths**power).sum() > _MOST_WORK[power]:
        longest = int(lengths.argmax())
        metadata.fault(
            key,
            f"is too long: token {longest} alone has {len(tokens[longest])} characters, and the "
            f"sum over all tokens of their length to the power of {power} must stay below "
            f"{_MOST_WORK[power]}",
        )
    if kind == "rwkv" and not _begins_are_tokens(tokens):
        metadata.fault(key, "lacks tokens of one byte with which longer tokens begin")


def _check_name(metadata: CheckedMetadata, tokens: Sequence[str]) -> None:
    """Upstream looks up four tokens of a model whose name says Phi-3."""
    name = (metadata.text("general.name") or "").lower()
    missing = [token for token in _PHI3_TOKENS if token not in tokens]
    if missing and ("phi-3" in name or "phi3" in name):
        metadata.fault(
            "general.name",
            f"says Phi-3, and the vocabulary lacks {', '.join(missing)}, which llama.cpp then "
            "looks up",
            "Give it another name with phiggml gguf set.",
        )


def _check_bytes(
    metadata: CheckedMetadata, kind: str, tokens: Sequence[str], numbers: Iterable[int]
) -> None:
    """Tokens that are typed as bytes say which."""
    if kind not in _SPELL_BYTES:
        return
    for number in numbers:
        if kind == "bert" or len(tokens[number]) < len("<0x"):
            metadata.fault(
                "tokenizer.ggml.token_type",
                f"has type {_BYTE} for token {number}, {tokens[number][:40]!r}, which is no byte",
            )
            return


def _first_twins(tokens: Sequence[str]) -> tuple[int, int]:
    seen: dict[str, int] = {}
    return next(
        (seen[token], i) for i, token in enumerate(tokens) if seen.setdefault(token, i) != i
    )


def _begins_are_tokens(tokens: Sequence[str]) -> bool:
    """Upstream never comes to an end with a text that begins like a token, and is none."""
    single: set[str] = set()
    begins: set[str] = set()
    for token in tokens:
        units = _rwkv_bytes(token)
        first, second = next(units, None), next(units, None)
        if first is not None:
            begins.add(first)
            if second is None:
                single.add(first)
    return begins <= single


def _rwkv_bytes(token: str) -> Iterator[str]:
    r"""The bytes of a token, in which \x41 stands for one byte and \n for another."""
    escaped = re.compile(rb"\\x..|\\.|[^\\]", re.DOTALL)
    plain = {b"\\t": b"\t", b"\\n": b"\n", b"\\r": b"\r"}
    for match in escaped.finditer(token.encode("utf-8", "surrogateescape")):
        unit = match[0]
        if unit.startswith(b"\\x"):
            yield unit[2:].decode("latin-1").lower()
        else:
            yield plain.get(unit, unit[-1:]).hex()
