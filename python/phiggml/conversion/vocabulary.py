"""The tokenizer of a checkpoint as GGUF metadata: which kind it is, and its vocabulary."""

from __future__ import annotations

from pathlib import Path

from phiggml.conversion.faults import Faults
from phiggml.conversion.vocabulary_bpe import BPEVocabulary, is_byte_level
from phiggml.conversion.vocabulary_pieces import FastPieceVocabulary, holds_pieces
from phiggml.conversion.vocabulary_sentencepiece import (
    ADDED_SCORE,
    NEVER_STRIP,
    PADDING_SCORE,
    SentencePieceVocabulary,
)
from phiggml.conversion.vocabulary_table import (
    END_OF_TEXT,
    END_OF_TURN,
    TokenizerFiles,
    Vocabulary,
    padding_token,
)
from phiggml.errors import UnsupportedError

__all__ = [
    "ADDED_SCORE",
    "END_OF_TEXT",
    "END_OF_TURN",
    "NEVER_STRIP",
    "PADDING_SCORE",
    "Vocabulary",
    "padding_token",
    "read_vocabulary",
]


def read_vocabulary(folder: Path, size: int, faults: Faults) -> Vocabulary:
    """Reads the tokenizer of a checkpoint, whose kind shows in what its files hold.

    Args:
        folder: the checkpoint.
        size: rows of the embedding; ids without a token become unused `[PADn]` tokens.
        faults: receives what is wrong with the tokenizer's files.

    Raises:
        FormatError: a file breaks its format.
        UnsupportedError: llama.cpp has no such tokenizer.

    Cost:
        Python loops over tokens and merges, about a second for 200,000.
    """
    files = TokenizerFiles(folder)
    if is_byte_level(files.fast):
        return BPEVocabulary(files, size, faults)
    if (folder / "tokenizer.model").exists():
        return SentencePieceVocabulary(files, size, faults)
    if holds_pieces(files.fast):
        return FastPieceVocabulary(files, size, faults)
    if not files.fast and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return BPEVocabulary(files, size, faults)
    raise UnsupportedError(
        f"convert: {folder / 'tokenizer.model'}: is absent, and there is no BPE tokenizer in "
        "tokenizer.json, or in vocab.json and merges.txt; no other kinds are converted. "
        "Copy the file from the original model if the tokenizer is the same."
    )
