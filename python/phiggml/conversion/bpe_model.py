"""The model of a tokenizer.json, where it is BPE: tokens by id, and merges in order."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import is_text
from phiggml.errors import UnsupportedError

__all__ = ["Wrong", "checked_merges", "checked_tokens", "read_bpe_model"]

_SHOWN = 5


class Wrong:
    """Faults of one list: the first ones whole, then how many more."""

    def __init__(self, faults: Faults, path: Path) -> None:
        self._faults, self._path, self._count = faults, path, 0

    def add(self, sentence: str) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            self._faults.add(self._path, sentence)

    def tell_rest(self) -> None:
        if self._count > _SHOWN:
            self._faults.add(self._path, f"{self._count - _SHOWN} more of the like.")


def read_bpe_model(
    fast: Mapping[str, Any], path: Path, faults: Faults
) -> tuple[dict[str, Any], list[Any]]:
    """Vocabulary and merges of tokenizer.json, unchecked; empty ones where they are at fault.

    Raises:
        UnsupportedError: the model does what llama.cpp's tokenizers do not.
    """
    model = fast.get("model")
    if not isinstance(model, dict):
        faults.add(path, "model must be an object.")
        return {}, []
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UnsupportedError(
                f"convert: {path}: its BPE model has {key} = {str(model[key])[:80]!r}, which "
                "llama.cpp's has not."
            )
    pieces, merges = model.get("vocab"), model.get("merges")
    if not isinstance(pieces, dict):
        faults.add(path, "model.vocab must be an object of tokens and ids.")
        pieces = {}
    if not isinstance(merges, list):
        faults.add(path, "model.merges must be a list.")
        merges = []
    return pieces, merges


def checked_tokens(pieces: Mapping[str, Any], size: int, wrong: Wrong) -> dict[int, str]:
    """Id -> token of a vocabulary, each once and below `size`; `wrong` receives the others."""
    taken: dict[int, str] = {}
    for token, token_id in pieces.items():
        if not token or not is_text(token):
            wrong.add(f"token {token!r}: must be UTF-8 and not empty.")
        elif type(token_id) is not int or token_id < 0:
            wrong.add(f"token {token!r}: its id {token_id!r} must be an integer >= 0.")
        elif token_id >= size:
            wrong.add(f"token {token!r}: its id {token_id} is beyond the {size} rows.")
        elif token_id in taken:
            wrong.add(f"tokens {taken[token_id]!r} and {token!r} have the same id {token_id}.")
        else:
            taken[token_id] = token
    wrong.tell_rest()
    return taken


def checked_merges(
    merges: Iterable[Any], known: Container[str], wrong: Wrong
) -> list[tuple[str, str]]:
    """Merges by rank, each once; what they name and make is in the vocabulary."""
    ranks: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_text, pair)):
            wrong.add(f"merge {i}: {str(merge)[:80]!r} must be two tokens.")
            continue
        left, right = pair
        absent = [token for token in (left, right, left + right) if token not in known]
        if absent:
            wrong.add(f"merge {i}: {absent[0][:80]!r} is not in the vocabulary.")
        elif " " in left + right:
            wrong.add(f"merge {i}: {left[:80]!r} and {right[:80]!r}: a token holds a space.")
        else:
            # Of a merge that stands there twice the tokenizers library takes the last.
            ranks.pop((left, right), None)
            ranks[left, right] = None
    wrong.tell_rest()
    return list(ranks)
