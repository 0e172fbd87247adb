"""The tokenizer of a checkpoint as GGUF metadata: tokens, scores, types and special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from phiggml.conversion import sentencepiece
from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import is_text
from phiggml.conversion.jsonfile import LARGE_LIMIT, SMALL_LIMIT, read_object
from phiggml.conversion.sentencepiece import SentencePieceModel, read_sentencepiece
from phiggml.errors import UnsupportedError

__all__ = ["ADDED_SCORE", "NEVER_STRIP", "PADDING_SCORE", "Vocabulary", "padding_token"]

# What llama.cpp's converters write: added tokens sort after every piece, padding after those.
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0

END_OF_TURN = "<|end|>"
_CONTROL = frozenset({END_OF_TURN, "<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>"})

# llama.cpp looks these up without asking whether they exist once a name says Phi-3, and gives
# the last three no stripping.
_NEEDED_TO_STRIP = ("</s>", "<unk>", "<s>", "<|endoftext|>")
NEVER_STRIP = frozenset(_NEEDED_TO_STRIP[1:])


def padding_token(token_id: int) -> str:
    """What stands in a GGUF file for a row of the embedding that has no token."""
    return f"[PAD{token_id}]"


def _parts(*components: Any) -> Iterator[dict[str, Any]]:
    """The components of a tokenizer.json, those within sequences too."""
    waiting = list(components)
    while waiting:
        component = waiting.pop()
        if isinstance(component, list):
            waiting.extend(component)
        elif isinstance(component, dict):
            yield component
            waiting += [component.get("normalizers"), component.get("pretokenizers")]


class Vocabulary:
    """Tokens of a sentencepiece model with the added tokens over them.

    Args:
        folder: the checkpoint.
        size: rows of the embedding; ids without a token become unused `[PADn]` tokens.
        faults: receives what is wrong with the tokenizer's files.

    Raises:
        FormatError: a file breaks its format.
        UnsupportedError: the tokenizer is no sentencepiece BPE model.

    Source:
        llama.cpp's converter for Phi3ForCausalLM, except that user-defined pieces keep their type,
        and that the chat markers are control tokens whatever the files say.
    """

    def __init__(self, folder: Path, size: int, faults: Faults) -> None:
        self.folder = folder
        self._faults = faults
        self.config = self._optional("tokenizer_config.json")
        self.fast = self._optional("tokenizer.json", limit=LARGE_LIMIT)
        self.model = self._read_model()
        self.tokens = [padding_token(i) for i in range(size)]
        self.scores = np.full(size, PADDING_SCORE, dtype=np.float32)
        self.types = np.full(size, sentencepiece.UNUSED, dtype=np.int32)
        self.ignored: list[tuple[int, str]] = []
        self._strip_flags: dict[str, bool] = {}
        self._place_pieces()
        self._place_added_tokens()
        self._check_unique()
        self.ids: Mapping[str, int] = MappingProxyType(
            {token: i for i, token in enumerate(self.tokens)}
        )
        for token in _CONTROL & self.ids.keys():
            self.types[self.ids[token]] = sentencepiece.CONTROL

    @property
    def strips_after_special(self) -> bool:
        """Whether white space right of special tokens vanishes, as after Phi-3's chat markers.

        True without any word about it in the files: the released tokenizers do.
        """
        if any(token not in self.ids for token in _NEEDED_TO_STRIP):
            return False
        flags = [v for token, v in self._strip_flags.items() if token not in NEVER_STRIP]
        return any(flags) if flags else True

    def metadata(self) -> dict[str, Any]:
        """GGUF keys and values, without those of special tokens."""
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": list(self.tokens),
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.token_type": self.types,
        }
        if not self._adds_space_prefix():
            metadata["tokenizer.ggml.add_space_prefix"] = False
        return metadata

    def _adds_space_prefix(self) -> bool:
        """Whether text gets a space in front: tokenizer.json says, or else tokenizer.model."""
        if "normalizer" not in self.fast and "pre_tokenizer" not in self.fast:
            return self.model.add_dummy_prefix
        for part in _parts(self.fast.get("normalizer"), self.fast.get("pre_tokenizer")):
            if part.get("type") == "Prepend":
                return True
            if part.get("type") == "Metaspace":
                added = part.get("add_prefix_space", True)
                return bool(added) and part.get("prepend_scheme") != "never"
        return False

    def _optional(self, name: str, *, limit: int = SMALL_LIMIT) -> dict[str, Any]:
        path = self.folder / name
        return read_object(path, limit=limit) if path.exists() else {}

    def _read_model(self) -> SentencePieceModel:
        path = self.folder / "tokenizer.model"
        if not path.exists():
            raise UnsupportedError(
                f"convert: {path}: is absent; only sentencepiece tokenizers are converted. "
                "Copy the file from the original model if the tokenizer is the same."
            )
        model = read_sentencepiece(path)
        if model.algorithm != sentencepiece.BPE:
            raise UnsupportedError(
                f"convert: {path}: is a sentencepiece model of kind {model.algorithm}; "
                "llama.cpp's tokenizer does kind 2 (BPE) only."
            )
        return model

    def _place_pieces(self) -> None:
        model, size = self.model, len(self.tokens)
        count = len(model.pieces)
        if count > size:
            self._faults.add(
                self.folder / "tokenizer.model",
                f"holds {count} pieces, but the embedding has only {size} rows.",
            )
        count = min(count, size)
        self.tokens[:count] = model.pieces[:count]
        self.scores[:count] = model.scores[:count]
        self.types[:count] = model.types[:count]

    def _place_added_tokens(self) -> None:
        """Lays added tokens over the pieces; later files win, as in llama.cpp's converter."""
        path = self.folder / "added_tokens.json"
        for token, token_id in self._optional(path.name).items():
            self._place(path, token_id, token, sentencepiece.USER_DEFINED)
        path = self.folder / "tokenizer_config.json"
        decoder = self.config.get("added_tokens_decoder") or {}
        if isinstance(decoder, dict):
            for key, entry in decoder.items():
                token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else key
                self._place_entry(path, token_id, entry)
        else:
            self._faults.add(path, "added_tokens_decoder must be an object.")
        path = self.folder / "tokenizer.json"
        added = self.fast.get("added_tokens") or []
        if isinstance(added, list):
            for entry in added:
                token_id = entry.get("id") if isinstance(entry, dict) else None
                self._place_entry(path, token_id, entry)
        else:
            self._faults.add(path, "added_tokens must be a list.")

    def _place_entry(self, path: Path, token_id: Any, entry: Any) -> None:
        if not isinstance(entry, dict):
            self._faults.add(path, f"added token {token_id!r} must be an object.")
            return
        special = bool(entry.get("special"))
        kind = sentencepiece.CONTROL if special else sentencepiece.USER_DEFINED
        token = entry.get("content")
        if self._place(path, token_id, token, kind):
            self._strip_flags[str(token)] = bool(entry.get("rstrip"))

    def _place(self, path: Path, token_id: Any, token: Any, kind: int) -> bool:
        if not is_text(token) or not token:
            self._faults.add(path, f"added token {token_id!r}: its text {token!r} must be UTF-8.")
            return False
        if type(token_id) is not int or token_id < 0:
            self._faults.add(path, f"added token {token!r}: its id {token_id!r} must be >= 0.")
            return False
        if token_id >= len(self.tokens):
            # No row of the embedding stands behind it, so the model can neither read nor say it.
            self.ignored.append((token_id, token))
            return False
        self.tokens[token_id] = token
        self.scores[token_id] = ADDED_SCORE
        self.types[token_id] = kind
        return True

    def _check_unique(self) -> None:
        """llama.cpp aborts the process on a vocabulary that holds a token twice."""
        first: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            other = first.setdefault(token, i)
            if other != i:
                self._faults.add(
                    self.folder / "tokenizer.model",
                    f"with its added tokens holds {token!r} twice, as {other} and {i}.",
                )
