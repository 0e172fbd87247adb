"""How the next token is chosen."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from phiggml import _core
from phiggml.errors import InputError
from phiggml.number import integer, real

__all__ = ["Sampling"]

_MOST = (1 << 31) - 1
_INTEGERS = {
    "top_k": _MOST,
    "penalty_last_n": _MOST,
    "dry_allowed_length": _MOST,
    "dry_penalty_last_n": _MOST,
    "mirostat": 2,
}


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
        dynatemp_range: let the temperature be from this much below to this much above, the higher
            the less certain the model is; 0 keeps it fixed.
        dynatemp_exponent: of the certainty in that.
        top_n_sigma: keep tokens whose logit is within so many standard deviations of the greatest;
            0 keeps all.
        xtc_probability: how often, of the tokens that reach xtc_threshold, all but the least likely
            are excluded; 0 is never.
        xtc_threshold: a probability; above 0.5 nothing is excluded.
        dry_multiplier: lower the logit of a token that would make a repetition of n tokens longer
            by dry_multiplier * dry_base ** (n - dry_allowed_length); 0 does nothing.
        dry_base: see there.
        dry_allowed_length: shorter repetitions are let be.
        dry_penalty_last_n: how many tokens back repetitions are looked for.
        dry_sequence_breakers: texts across which nothing counts as repeated.
        mirostat: 1 or 2 keeps the surprise of the text near mirostat_tau, instead of all that would
            come between the penalties and the temperature; 0 is off.
        mirostat_tau: the surprise aimed at, in bits a token.
        mirostat_eta: how fast that is learnt.
        logit_bias: token -> what is added to its logit; -inf bans it. Kept as pairs.

    Raises:
        InputError: a value is of the wrong type or out of range; the latter is found when it is
            first used.

    Source:
        llama.cpp's sampler chain, in its order: logit_bias, penalties, DRY, top_n_sigma, top_k,
        typical_p, top_p, min_p, XTC, temperature; its defaults, except that 0 switches top_n_sigma
        off and mirostat leaves the penalties on. The same logits and seed give the same tokens on
        every machine.

    Example:
        >>> Sampling(temperature=0).top_k
        40
        >>> Sampling(logit_bias={5: float("-inf")}).logit_bias
        ((5, -inf),)
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
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        for name, most in _INTEGERS.items():
            object.__setattr__(self, name, _integer(name, getattr(self, name), most))
        if self.seed is not None:
            object.__setattr__(self, "seed", _integer("seed", self.seed, (1 << 32) - 1))
        for field in fields(self):
            if field.type == "float":
                number = _number(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, number)
        object.__setattr__(self, "dry_sequence_breakers", _texts(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def _sampler(
        self, model: _core.model.Model, n_ctx: int, grammar: _core.grammar.Grammar | None = None
    ) -> _core.sampling.Sampler:
        settings = _core.sampling.SamplingSettings()
        for field in fields(self):
            if field.name != "seed":
                setattr(settings, field.name, getattr(self, field.name))
        # Memory is set aside for so many; no context has more than n_ctx.
        settings.penalty_last_n = min(self.penalty_last_n, n_ctx)
        settings.dry_penalty_last_n = min(self.dry_penalty_last_n, n_ctx)
        settings.seed = secrets.randbits(32) if self.seed is None else self.seed
        return _core.sampling.Sampler(settings, model, grammar)


def _integer(name: str, value: Any, most: int) -> int:
    number = integer(value, 0, most)
    if number is None:
        raise InputError(f"sampling: {name} is {value!r}: it must be an integer from 0 to {most}.")
    return number


def _number(name: str, value: Any) -> float:
    number = real(value)
    if number is None:
        raise InputError(f"sampling: {name} is {value!r}: it must be a number.")
    if isinstance(value, int) and abs(value) > 1 << 127:
        raise InputError(f"sampling: {name}: the number is too large.")
    return number


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(
            f"sampling: dry_sequence_breakers is {value!r}: it must be a sequence of texts."
        )
    for text in value:
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError):
            raise InputError(
                f"sampling: dry_sequence_breakers: {text!r} is no text that UTF-8 can hold."
            ) from None
    return tuple(value)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = value.items() if isinstance(value, Mapping) else value
        given = [(token, bias) for token, bias in pairs]
    except (TypeError, ValueError):
        raise InputError(
            f"sampling: logit_bias is {value!r}: it must map tokens to numbers."
        ) from None
    biases = tuple(
        (
            _integer("a token of logit_bias", token, _MOST),
            _number(f"logit_bias of token {token}", bias),
        )
        for token, bias in given
    )
    if len({token for token, _ in biases}) < len(biases):
        raise InputError("sampling: logit_bias names a token twice.")
    return biases
