"""Tiny byte-level BPE tokenizers in the layouts of the releases, trained with the real splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

__all__ = ["CL100K_SPLIT", "O200K_SPLIT", "QWEN2_SPLIT", "train_bpe"]

# The released tokenizers' patterns, from their tokenizer.json files.
CL100K_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = CL100K_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splits(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2_tokens() -> Iterator[AddedToken]:
    """phi-1 to phi-2: the end of text, and runs of spaces and tabs for code."""
    yield AddedToken("<|endoftext|>", normalized=False, special=True)
    for n in range(31, 1, -1):
        yield AddedToken(" " * n, normalized=True, special=False)
    for n in range(9, 1, -1):
        yield AddedToken("\t" * n, normalized=True, special=False)


def _cl100k_tokens() -> Iterator[AddedToken]:
    """Phi-4: white space on both sides of each vanishes."""
    names = ["dummy_0", "endoftext", "fim_prefix", "fim_middle", "fim_suffix"]
    names += ["im_start", "im_end", "im_sep", "endofprompt"]
    for name in names:
        content = f"<|{name}|>"
        yield AddedToken(content, lstrip=True, rstrip=True, normalized=False, special=True)


def _o200k_tokens() -> Iterator[AddedToken]:
    """Phi-4-mini: white space right of the chat's markers vanishes; tools' markers are text."""
    for name in ("endoftext", "endofprompt"):
        yield AddedToken(f"<|{name}|>", normalized=False, special=True)
    for name in ("assistant", "end", "user", "system"):
        yield AddedToken(f"<|{name}|>", rstrip=True, normalized=False, special=True)
    for name in ("tool", "/tool", "tool_call", "/tool_call", "tool_response", "tag"):
        yield AddedToken(f"<|{name}|>", rstrip=True, normalized=False, special=False)


_KINDS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), _gpt2_tokens),
    "cl100k": (_splits(CL100K_SPLIT), _cl100k_tokens),
    "o200k": (_splits(O200K_SPLIT), _o200k_tokens),
}


def train_bpe(kind: str, texts: Iterable[str], size: int) -> dict[str, Any]:
    """Trains a byte-level BPE tokenizer.

    Args:
        kind: "gpt-2" (phi-1 to phi-2), "cl100k" (Phi-4) or "o200k" (Phi-4-mini).
        texts: to train on.
        size: at most how many tokens, the 256 bytes and the added ones (39, 9 or 12) included;
            few texts yield fewer.

    Returns:
        a tokenizer.json document. Added tokens follow the pieces; every text can be encoded.
    """
    split, added_tokens = _KINDS[kind]
    added = list(added_tokens())
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=size - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document
