"""The vocabulary of a sentencepiece model that is left in tokenizer.json alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from phiggml.conversion.bpe_model import Wrong, checked_merges, checked_tokens, read_bpe_model
from phiggml.conversion.faults import Faults
from phiggml.conversion.piece_scores import merge_piece, score_pieces
from phiggml.conversion.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN
from phiggml.conversion.vocabulary_sentencepiece import SPACE, PieceVocabulary
from phiggml.conversion.vocabulary_table import TokenizerFiles, padding_token
from phiggml.errors import UnsupportedError

__all__ = ["FastPieceVocabulary", "holds_pieces"]

_CONTROL = frozenset({"<s>", "</s>"})
_BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
_ANY_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>", re.ASCII)
_MOST_CHARACTERS, _LONGEST = 1 << 22, 1 << 14
_SHOWN = 5


def holds_pieces(fast: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json that is not byte-level holds a BPE model."""
    model = fast.get("model")
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and "merges" in model


class FastPieceVocabulary(PieceVocabulary):
    """Tokens, scores and types of a tokenizer.json that was made of a sentencepiece BPE model.

    Raises:
        FormatError: a file breaks its format.
        UnsupportedError: no scores give what the merges do, or llama.cpp's tokenizer is another.

    Source:
        The serialization of the tokenizers library; piece_scores.py says why ids are its own.
    """

    def __init__(self, files: TokenizerFiles, size: int, faults: Faults) -> None:
        self._vocab: dict[int, str] = {}
        self._merges: list[tuple[str, str]] = []
        super().__init__(files, size, faults)
        if not faults.sentences:
            self._score()

    def _pieces_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(
            f"convert: {self._pieces_path()}: {what}. Copy tokenizer.model from the original "
            "model if the tokenizer is the same."
        )

    def _place_pieces(self) -> None:
        path = self._pieces_path()
        self._check_model()
        self._check_spaces()
        pieces, merges = read_bpe_model(self.fast, path, self._faults)
        self._vocab = checked_tokens(pieces, len(self.tokens), Wrong(self._faults, path))
        self._merges = checked_merges(merges, pieces.keys(), Wrong(self._faults, path))
        self._check_tokens(path, pieces)
        for token_id, token in self._vocab.items():
            if token != padding_token(token_id):
                self.tokens[token_id] = token
                self.types[token_id] = self._type(token)
                self.scores[token_id] = 0.0

    def _type(self, token: str) -> int:
        if token in _BYTES:
            return BYTE
        if token == self.fast["model"].get("unk_token"):
            return UNKNOWN
        return CONTROL if token in _CONTROL else NORMAL

    def _check_model(self) -> None:
        model = self.fast["model"]
        if model.get("byte_fallback") is not True:
            self._refuse("its BPE model is neither byte-level nor has byte_fallback")
        if model.get("ignore_merges"):
            self._refuse("its BPE model ignores merges, which llama.cpp's does not with pieces")

    def _check_spaces(self) -> None:
        """Spaces are shown, and nothing else happens to a text before it is merged."""
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prepend = {"type": "Prepend", "prepend": SPACE}
        steps = self._steps("normalizer", "normalizers")
        splits = self._steps("pre_tokenizer", "pretokenizers")
        if not steps and len(splits) == 1 and isinstance(splits[0], dict):
            kind, shown = splits[0].get("type"), splits[0].get("replacement", SPACE)
            if kind == "Metaspace" and shown == SPACE:
                return
        if splits or steps not in ([replace], [prepend, replace], [replace, prepend]):
            what = [step.get("type") if isinstance(step, dict) else step for step in steps + splits]
            self._refuse(
                f"its steps before merging are {str(what)[:200]}; "
                f"known ones show spaces as {SPACE!r} and put one in front"
            )

    def _steps(self, key: str, inner: str) -> list[Any]:
        step = self.fast.get(key)
        if isinstance(step, dict) and step.get("type") == "Sequence":
            steps = step.get(inner)
            return steps if isinstance(steps, list) else [steps]
        return [] if step is None else [step]

    def _check_tokens(self, path: Path, pieces: Mapping[str, Any]) -> None:
        missing = sorted(_BYTES - pieces.keys())
        if missing:
            shown = ", ".join(missing[:_SHOWN])
            self._faults.add(path, f"lacks the tokens of {len(missing)} bytes: {shown}.")
        unknown = self.fast["model"].get("unk_token")
        if unknown is not None and (not isinstance(unknown, str) or unknown not in pieces):
            self._faults.add(path, f"model.unk_token {str(unknown)[:80]!r} is not in model.vocab.")
        lengths = [len(token) for token in self._vocab.values()]
        if sum(lengths) > _MOST_CHARACTERS or max(lengths, default=0) > _LONGEST:
            self._faults.add(
                path,
                f"its tokens have {sum(lengths)} characters, the longest {max(lengths)}; "
                f"there may be {_MOST_CHARACTERS}, and {_LONGEST} in one.",
            )
        odd = [token for token in pieces if _ANY_BYTE.fullmatch(token) and token not in _BYTES]
        of_bytes = [pair for pair in self._merges if {*pair, "".join(pair)} & _BYTES]
        if odd or of_bytes:
            self._refuse(f"it has tokens like those of bytes: {str((odd + of_bytes)[0])[:80]}")

    def _score(self) -> None:
        hidden = {
            token
            for i, token in self._vocab.items()
            if self.types[i] not in (NORMAL, BYTE) or self.tokens[i] != token
        }
        whole = {token for token in hidden if self._is_always_found(token)}
        ranks = {pair: rank for rank, pair in enumerate(self._merges) if "".join(pair) not in whole}
        made = sorted(t for t in hidden - whole if len(merge_piece(t, ranks).parts) == 1)
        if made:
            self._refuse(f"its merges make {made[0][:80]!r}, which is no piece but an added token")
        visible = [i for i in sorted(self._vocab) if self._vocab[i] not in hidden]
        pieces = [self._vocab[i] for i in visible if self.types[i] == NORMAL]
        scores, torn = score_pieces(pieces, ranks)
        # What holds an added token is never looked at as one text.
        torn = [piece for piece in torn if not any(token in piece for token in whole)]
        if torn:
            self._refuse(
                f"no merge makes its piece {torn[0][:80]!r} of "
                f"{merge_piece(torn[0], ranks).parts!r}, as llama.cpp's tokenizer does by scores; "
                f"so it is with {len(torn)} pieces"
            )
        for i in visible:
            if self.types[i] == NORMAL:
                self.scores[i] = scores[self._vocab[i]]

    def _is_always_found(self, token: str) -> bool:
        """Whether a token is cut out of texts wherever it stands, before anything is merged."""
        flags = self.flags.get(self.ids.get(token, -1))
        if flags is None or flags.normalized or flags.single_word:
            return False
        # The space's sign stands in a text only after tokens have been cut out.
        return SPACE not in token
