"""The vocabulary of a sentencepiece model: its pieces with added tokens over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phiggml.conversion import sentencepiece
from phiggml.conversion.faults import Faults
from phiggml.conversion.sentencepiece import read_sentencepiece
from phiggml.conversion.vocabulary_table import TokenizerFiles, Vocabulary
from phiggml.errors import UnsupportedError

__all__ = [
    "ADDED_SCORE",
    "NEVER_STRIP",
    "PADDING_SCORE",
    "SPACE",
    "PieceVocabulary",
    "SentencePieceVocabulary",
]

# What llama.cpp's converters write: added tokens sort after every piece, padding after those.
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0

# llama.cpp looks these up without asking whether they exist once a name says Phi-3, and gives
# the last three no stripping.
_NEEDED_TO_STRIP = ("</s>", "<unk>", "<s>", "<|endoftext|>")
NEVER_STRIP = frozenset(_NEEDED_TO_STRIP[1:])
SPACE = "\u2581"


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


class PieceVocabulary(Vocabulary):
    """Tokens, scores and types of sentencepiece BPE, wherever its pieces are read.

    Source:
        llama.cpp's converter for Phi3ForCausalLM, except that user-defined pieces keep their type,
        and that the chat markers are control tokens whatever the files say.
    """

    dummy_prefix = False
    """Whether a space goes in front of texts where tokenizer.json says nothing."""

    def __init__(self, files: TokenizerFiles, size: int, faults: Faults) -> None:
        self.scores = np.full(size, PADDING_SCORE, dtype=np.float32)
        super().__init__(files, size, faults)

    @property
    def strips_after_special(self) -> bool:
        """Whether white space right of special tokens vanishes, as after Phi-3's chat markers.

        True without any word about it in the files: the released tokenizers do.
        """
        if any(token not in self.ids for token in _NEEDED_TO_STRIP):
            return False
        flags = [
            token.rstrip for i, token in self.flags.items() if self.tokens[i] not in NEVER_STRIP
        ]
        return any(flags) if flags else True

    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": list(self.tokens),
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.token_type": self.types,
        }
        scheme = self._prepend_scheme()
        if scheme in ("none", "never"):
            metadata["tokenizer.ggml.add_space_prefix"] = False
        if scheme in ("always", "first") or (scheme == "never" and self._flagged("normalized")):
            metadata["phiggml.tokenizer.prepend_scheme"] = scheme
        return metadata | self._flag_metadata(self._rstrip(), self._flagged("normalized"))

    def _rstrip(self) -> set[int] | None:
        """Tokens that take the white space on their right, unless llama.cpp knows by the name."""
        if not self.flags:
            return None
        found = {int(i) for i in np.flatnonzero(self.types == sentencepiece.USER_DEFINED)}
        strips = self.strips_after_special
        named = {
            i for i in found | self.flags.keys() if strips and self.tokens[i] not in NEVER_STRIP
        }
        flagged = self._flagged("rstrip")
        return None if flagged == named else flagged

    def _prepend_scheme(self) -> str:
        """Which texts get a space in front: tokenizer.json says, or else tokenizer.model.

        Returns:
            "each" between added tokens, or "none", by a normalizer, before normalized tokens are
            looked for; "always", "first" or "never" by a pre-tokenizer, after that, and only in
            front of what does not begin with a space.
        """
        if "normalizer" not in self.fast and "pre_tokenizer" not in self.fast:
            return "each" if self.dummy_prefix else "none"
        for part in _parts(self.fast.get("normalizer"), self.fast.get("pre_tokenizer")):
            if part.get("type") == "Prepend":
                return "each"
            if part.get("type") == "Metaspace":
                self._check_unsplit(part)
                given = part.get("prepend_scheme", "always")
                added = part.get("add_prefix_space", True) and given in ("always", "first")
                return str(given) if added else "never"
        return "none"

    def _check_unsplit(self, metaspace: dict[str, Any]) -> None:
        """Splitting at spaces changes nothing where no piece goes over one; else it is refused."""
        merged = np.isin(self.types, (sentencepiece.NORMAL, sentencepiece.UNUSED))
        texts = [self.tokens[i] for i in np.flatnonzero(merged).tolist()]
        over = [text for text in texts if SPACE in text[1:]]
        if metaspace.get("split", True) and over:
            raise UnsupportedError(
                f"convert: {self.folder / 'tokenizer.json'}: its pre-tokenizer splits at spaces, "
                f"and {len(over)} pieces such as {over[0]!r} go over one, which llama.cpp's "
                "tokenizer would make. Set pre_tokenizer.split to false if that is meant."
            )

    def _place_added(self, token_id: int) -> None:
        self.scores[token_id] = ADDED_SCORE


class SentencePieceVocabulary(PieceVocabulary):
    """Tokens, scores and types of a tokenizer.model with the added tokens over them.

    Raises:
        FormatError: a file breaks its format.
        UnsupportedError: the tokenizer is no sentencepiece BPE model.
    """

    def __init__(self, files: TokenizerFiles, size: int, faults: Faults) -> None:
        self.model = read_sentencepiece(files.folder / "tokenizer.model")
        if self.model.algorithm != sentencepiece.BPE:
            raise UnsupportedError(
                f"convert: {files.folder / 'tokenizer.model'}: is a sentencepiece model of kind "
                f"{self.model.algorithm}; llama.cpp's tokenizer does kind 2 (BPE) only."
            )
        self.dummy_prefix = self.model.add_dummy_prefix
        super().__init__(files, size, faults)

    def _place_pieces(self) -> None:
        model, size = self.model, len(self.tokens)
        count = len(model.pieces)
        if count > size:
            self._faults.add(
                self._pieces_path(),
                f"holds {count} pieces, but the embedding has only {size} rows.",
            )
        count = min(count, size)
        self.tokens[:count] = model.pieces[:count]
        self.scores[:count] = model.scores[:count]
        self.types[:count] = model.types[:count]

    def _pieces_path(self) -> Path:
        return self.folder / "tokenizer.model"
