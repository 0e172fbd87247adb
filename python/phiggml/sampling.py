"""How the next token is chosen."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields

from phiggml import _core
from phiggml.errors import InputError

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits. The only home of these defaults.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token (greedy).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: keep tokens at least this likely relative to the likeliest; 0 keeps all.
        typical_p: keep tokens of typical surprise that together have this probability; 1 keeps all.
        repeat_penalty: divides the logits of recent tokens; 1 does nothing.
        frequency_penalty: subtracted for each recent occurrence of a token.
        presence_penalty: subtracted once from each recent token.
        penalty_last_n: how many tokens back the penalties look.
        seed: makes a run repeatable; None draws one.

    Raises:
        InputError: a value is of the wrong type or out of range; the latter is found when it is
            first used.

    Source:
        llama.cpp's sampler chain, in the order penalties, top_k, typical_p, top_p, min_p,
        temperature; its defaults.

    Example:
        >>> Sampling(temperature=0).top_k
        40
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "penalty_last_n"):
            self._check_integer(name, (1 << 31) - 1)
        if self.seed is not None:
            self._check_integer("seed", (1 << 32) - 1)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                raise InputError(f"sampling: {field.name} is {value!r}: it must be a number.")

    def _check_integer(self, name: str, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise InputError(
                f"sampling: {name} is {value!r}: it must be an integer from 0 to {most}."
            )

    def _sampler(self, n_vocab: int, n_ctx: int) -> _core.session.Sampler:
        settings = _core.session.SamplingSettings()
        for field in fields(self):
            if field.name != "seed":
                setattr(settings, field.name, getattr(self, field.name))
        # Upstream sets memory aside for so many; no context has more than n_ctx.
        settings.penalty_last_n = min(self.penalty_last_n, n_ctx)
        settings.seed = secrets.randbits(32) if self.seed is None else self.seed
        return _core.session.Sampler(settings, n_vocab)
