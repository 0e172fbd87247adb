"""The vocabulary of a byte-level BPE tokenizer: tokenizer.json, or vocab.json with merges.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phiggml.conversion.bpe_model import Wrong, checked_merges, checked_tokens, read_bpe_model
from phiggml.conversion.faults import Faults
from phiggml.conversion.jsonfile import LARGE_LIMIT, read_bytes
from phiggml.conversion.pre_tokenizer import GPT2, name_pre_tokenizer
from phiggml.conversion.sentencepiece import NORMAL
from phiggml.conversion.vocabulary_table import TokenizerFiles, Vocabulary
from phiggml.errors import UnsupportedError

__all__ = ["BYTE_CHARACTERS", "BPEVocabulary", "is_byte_level"]

# Tokenizers without tokenizer.json split as GPT-2's code does.
_GPT2_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer")
_SHOWN = 5


def _byte_characters() -> str:
    """The character that stands for each byte: itself if it shows, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown}
    table |= {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return "".join(table[byte] for byte in range(256))


BYTE_CHARACTERS = _byte_characters()


def is_byte_level(fast: dict[str, Any]) -> bool:
    """Whether a tokenizer.json holds a BPE tokenizer whose pieces are made of bytes."""
    model = fast.get("model")
    if isinstance(model, dict) and model.get("type", "BPE") != "BPE":
        return False
    waiting = [fast.get("pre_tokenizer"), fast.get("decoder")]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if part.get("type") == "ByteLevel":
                return True
            waiting += [part.get("pretokenizers"), part.get("decoders")]
    return False


class BPEVocabulary(Vocabulary):
    """Tokens, types and merges of a byte-level BPE tokenizer.

    Raises:
        FormatError: a file breaks its format.
        UnsupportedError: llama.cpp cannot do what the tokenizer does.

    Source:
        llama.cpp's converter for GPT-2's kind, except that the split is known by its pattern and
        that added tokens are control tokens only where the files say so.
    """

    has_default_end = False  # llama.cpp takes token 11, whatever that is

    def __init__(self, files: TokenizerFiles, size: int, faults: Faults) -> None:
        self.merges: list[str] = []
        self.pre = ""
        super().__init__(files, size, faults)

    @property
    def strips_after_special(self) -> bool:
        """False: a name that says Phi-3 makes llama.cpp look for tokens that are not here."""
        return False

    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": list(self.tokens),
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
            **self._flag_metadata(self._flagged("rstrip") or None, self._normalized()),
        }
        if self.pre == "llama-bpe":
            # Under this name a BOS token is added unless the file says otherwise.
            metadata["tokenizer.ggml.add_bos_token"] = False
        return metadata

    def _normalized(self) -> set[int]:
        """Tokens that are looked for after the others, if that makes a difference.

        It makes none where tokens of both kinds have no character in common and take no white
        space beside them, such as GPT-2's end of text and the runs of spaces of phi-2.
        """
        normalized = self._flagged("normalized")
        others = self.flags.keys() - normalized
        characters = [
            {char for i in ids for char in self.tokens[i]} for ids in (normalized, others)
        ]
        strips = others & (self._flagged("lstrip") | self._flagged("rstrip"))
        return normalized if strips or characters[0] & characters[1] else set()

    def _pieces_path(self) -> Path:
        return self.folder / ("tokenizer.json" if self.fast else "vocab.json")

    def _place_pieces(self) -> None:
        path = self._pieces_path()
        if self.fast:
            pieces, merges = read_bpe_model(self.fast, path, self._faults)
            merges_path = path
            model = self.fast.get("model")
            ignores = isinstance(model, dict) and bool(model.get("ignore_merges"))
            self.pre = name_pre_tokenizer(self.fast, path, ignore_merges=ignores)
        else:
            kind = str(self.config.get("tokenizer_class", _GPT2_CLASSES[0]))
            if kind.removesuffix("Fast") not in _GPT2_CLASSES:
                raise UnsupportedError(
                    f"convert: {self.folder}: holds vocab.json without tokenizer.json, and how "
                    f"{kind[:80]!r} splits text is unknown. Save it with save_pretrained."
                )
            pieces, self.pre = self._files.read("vocab.json", limit=LARGE_LIMIT), GPT2
            merges_path = self.folder / "merges.txt"
            merges = list(_merge_lines(merges_path))
        taken = checked_tokens(pieces, len(self.tokens), Wrong(self._faults, path))
        for token_id, token in taken.items():
            self.tokens[token_id] = token
        self.types[np.fromiter(taken, np.int64, len(taken))] = NORMAL
        known = pieces.keys()
        pairs = checked_merges(merges, known, Wrong(self._faults, merges_path))
        self.merges = [f"{left} {right}" for left, right in pairs]
        missing = [byte for byte, char in enumerate(BYTE_CHARACTERS) if char not in known]
        if missing:
            shown = ", ".join(f"0x{byte:02X}" for byte in missing[:_SHOWN])
            self._faults.add(
                path, f"its vocabulary lacks tokens for {len(missing)} bytes: {shown}..."
            )


def _merge_lines(path: Path) -> Iterator[Any]:
    text = read_bytes(path, LARGE_LIMIT).decode("utf-8", "replace")
    for i, line in enumerate(text.split("\n")):
        line = line.removesuffix("\r")
        if line and not (i == 0 and line.startswith("#version")):
            yield line
