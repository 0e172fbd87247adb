"""Guesses that an answer repeats what was read or written before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.errors import InputError
from phiggml.number import integer

__all__ = ["PromptLookup", "check_count"]

MOST_GUESSES = 64
"""Tokens that are checked at once; more are seldom right, and all are computed."""


@dataclass(frozen=True)
class PromptLookup:
    """Guesses that an answer repeats what was read or written before; needs no second model.

    Where the last `ngram` tokens have come before, the tokens that followed them there, at their
    last occurrence, are checked in one evaluation. The answer is the one without guesses, but for
    rounding: the model's logits decide on every token.

    Attributes:
        n: tokens to guess at once, 1 to 64.
        ngram: tokens that must be the same, 1 to 64.

    Raises:
        InputError: one of them is out of range.

    Cost:
        Each evaluation computes the guesses too; with none there is none. Texts that repeat
        themselves (summaries, edits, code) gain.

    Source:
        Prompt lookup decoding, A. Saxena, 2023.

    Example:
        >>> import phiggml as pg
        >>> with pg.Session("phi3-nano.gguf") as session:
        ...     answer = session.generate("The child", max_tokens=8, draft=pg.PromptLookup())
        >>> len(answer.tokens) <= 8
        True
    """

    n: int = 8
    ngram: int = 3

    def __post_init__(self) -> None:
        check_count("n", self.n)
        check_count("ngram", self.ngram)

    def _propose(
        self, tokens: npt.NDArray[np.int32], n_ctx: int, n_most: int
    ) -> npt.NDArray[np.int32]:
        return _core.prompt_lookup.propose(tokens, self.ngram, min(self.n, n_most))


def check_count(name: str, value: Any) -> None:
    """Requires what may be a number of tokens to guess, or to go by."""
    if integer(value, 1, MOST_GUESSES) is None:
        raise InputError(
            f"draft: {name} is {value!r}: it must be an integer from 1 to {MOST_GUESSES}."
        )
