"""What every kind of vocabulary has: its files, tokens with their types, and added tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import is_text
from phiggml.conversion.jsonfile import LARGE_LIMIT, SMALL_LIMIT, read_object
from phiggml.conversion.sentencepiece import CONTROL, UNUSED, USER_DEFINED

__all__ = ["END_OF_TEXT", "END_OF_TURN", "TokenizerFiles", "Vocabulary", "padding_token"]

END_OF_TURN, END_OF_TEXT = "<|end|>", "<|endoftext|>"
_CONTROL = frozenset({END_OF_TURN, END_OF_TEXT, "<|assistant|>", "<|user|>", "<|system|>"})
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_SHOWN = 5


def padding_token(token_id: int) -> str:
    """What stands in a GGUF file for a row of the embedding that has no token."""
    return f"[PAD{token_id}]"


class TokenizerFiles:
    """The JSON files of a tokenizer, each read once; an absent one is an empty object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.read("tokenizer_config.json")

    @cached_property
    def fast(self) -> dict[str, Any]:
        """tokenizer.json."""
        return self.read("tokenizer.json", limit=LARGE_LIMIT)

    def read(self, name: str, *, limit: int = SMALL_LIMIT) -> dict[str, Any]:
        path = self.folder / name
        return read_object(path, limit=limit) if path.exists() else {}


@dataclass(frozen=True)
class AddedFlags:
    """Flags of an added token, as the tokenizers library names them."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Vocabulary:
    """The tokens of a checkpoint by id; a kind of tokenizer places its pieces, this the rest.

    Args:
        files: of the tokenizer.
        size: rows of the embedding; ids without a token become unused `[PADn]` tokens.
        faults: receives what is wrong with the files.
    """

    has_default_end = True
    """Whether a file that names no end of text means one that exists."""

    def __init__(self, files: TokenizerFiles, size: int, faults: Faults) -> None:
        self.folder = files.folder
        self.config = files.config
        self.fast = files.fast
        self.ignored: list[tuple[int, str]] = []
        self.flags: dict[int, AddedFlags] = {}
        self.tokens = [padding_token(i) for i in range(size)]
        self.types = np.full(size, UNUSED, dtype=np.int32)
        self._faults = faults
        self._files = files
        self._place_pieces()
        self._place_added_tokens()
        self._check_unique()
        self.ids: Mapping[str, int] = {token: i for i, token in enumerate(self.tokens)}
        for token in _CONTROL & self.ids.keys():
            self.types[self.ids[token]] = CONTROL

    @property
    def strips_after_special(self) -> bool:
        """Whether the model's name says Phi-3, by which llama.cpp strips white space after tokens.

        A name that says so loses it where this is False; others stay as they are.
        """
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """GGUF keys and values, without those of special tokens."""
        raise NotImplementedError

    def _flagged(self, flag: str) -> set[int]:
        """Ids of added tokens that have a flag."""
        return {i for i, flags in self.flags.items() if getattr(flags, flag)}

    def _flag_metadata(self, rstrip: set[int] | None, normalized: set[int]) -> dict[str, Any]:
        """Keys of our own for what llama.cpp's format cannot say; none where there is no need.

        Args:
            rstrip: ids that take the white space on their right; None where llama.cpp knows them.
            normalized: ids that are found after normalization.
        """
        ids = {
            "lstrip": self._flagged("lstrip"),
            "rstrip": rstrip,
            "single_word": self._flagged("single_word"),
            "normalized": normalized,
        }
        return {
            f"phiggml.tokenizer.{flag}": np.array(sorted(found), dtype=np.int32)
            for flag, found in ids.items()
            if found or (flag == "rstrip" and found is not None)
        }

    def _place_pieces(self) -> None:
        raise NotImplementedError

    def _place_added(self, token_id: int) -> None:
        """Called after an added token has been put at an id."""

    def _place_added_tokens(self) -> None:
        """Lays added tokens over the pieces; later files win, as in llama.cpp's converter."""
        path = self.folder / "added_tokens.json"
        for token, token_id in self._files.read(path.name).items():
            self._place(path, token_id, token, USER_DEFINED)
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
        kind = CONTROL if special else USER_DEFINED
        if self._place(path, token_id, entry.get("content"), kind):
            flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
            flags["normalized"] = bool(entry.get("normalized", not special))
            self.flags[token_id] = AddedFlags(**flags)

    def _place(self, path: Path, token_id: Any, token: Any, kind: int) -> bool:
        if not is_text(token) or not token:
            self._faults.add(path, f"added token {token_id!r}: its text {token!r} must be UTF-8.")
            return False
        if type(token_id) is not int or token_id < 0:
            self._faults.add(path, f"added token {token!r}: its id {token_id!r} must be >= 0.")
            return False
        if token_id >= len(self.tokens):
            # No row of the embedding stands behind it, so the model can neither read nor say it.
            if (token_id, token) not in self.ignored:
                self.ignored.append((token_id, token))
            return False
        self.tokens[token_id] = token
        self.types[token_id] = kind
        self._place_added(token_id)
        return True

    def _check_unique(self) -> None:
        """llama.cpp aborts the process on a vocabulary that holds a token twice."""
        first: dict[str, int] = {}
        twins = [
            (token, first[token], i)
            for i, token in enumerate(self.tokens)
            if first.setdefault(token, i) != i
        ]
        for token, other, i in twins[:_SHOWN]:
            self._faults.add(
                self._pieces_path(),
                f"with its added tokens holds {token!r} twice, as {other} and {i}.",
            )
        if len(twins) > _SHOWN:
            self._faults.add(
                self._pieces_path(), f"holds {len(twins) - _SHOWN} further tokens twice."
            )

    def _pieces_path(self) -> Path:
        """The file that faults of the whole vocabulary are ascribed to."""
        raise NotImplementedError
