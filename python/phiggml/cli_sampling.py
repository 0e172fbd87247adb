"""How tokens are chosen, as options of a command line and settings of a chat."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import phiggml as pg

__all__ = ["add_sampling_arguments", "parse_setting", "sampling_of", "setting_text"]

_DEFAULT = pg.Sampling()
# Fields of Sampling; types and defaults are those of the class.
_MEANINGS = {
    "temperature": ("T", "0 always takes the likeliest token"),
    "top_k": ("K", "keep the likeliest K tokens; 0 keeps all"),
    "top_p": ("P", "keep the likeliest tokens that have this probability together"),
    "min_p": ("P", "keep tokens at least this likely relative to the likeliest"),
    "seed": ("S", "makes the answer repeatable"),
    "repeat_penalty": ("X", "divides the logits of recent tokens"),
    "frequency_penalty": ("X", "subtracted for each recent occurrence"),
    "presence_penalty": ("X", "subtracted once from each recent token"),
    "penalty_last_n": ("N", "how many tokens back the penalties look"),
    "typical_p": ("P", "keep tokens of typical surprise that have this probability together"),
    "top_n_sigma": ("X", "keep logits within so many deviations of the greatest; 0 keeps all"),
    "dynatemp_range": ("X", "let the temperature be so much lower or higher"),
    "dynatemp_exponent": ("X", "of the certainty in that"),
    "xtc_probability": ("P", "how often the likeliest tokens are excluded"),
    "xtc_threshold": ("P", "those that reach this, all but the least likely of them"),
    "dry_multiplier": ("X", "lower the logits of tokens that go on with a repetition; 0 does not"),
    "dry_base": ("X", "how fast that grows with its length"),
    "dry_allowed_length": ("N", "shorter repetitions are let be"),
    "dry_penalty_last_n": ("N", "how many tokens back repetitions are looked for"),
    "dry_sequence_breakers": ("LIST", "texts across which nothing is repeated, as a JSON list"),
    "mirostat": ("M", "1 or 2 keeps the surprise near a target; 0 is off"),
    "mirostat_tau": ("X", "that target, in bits a token"),
    "mirostat_eta": ("X", "how fast it is learnt"),
    "logit_bias": ("ID=X,...", "added to the logits of tokens; -inf bans one"),
}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares an option for each field of Sampling."""
    group = parser.add_argument_group("sampling")
    for name, (metavar, meaning) in _MEANINGS.items():
        default = getattr(_DEFAULT, name)
        shown = "" if default in (None, ()) else f" (default {setting_text(name, default)})"
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=_argument(name),
            metavar=metavar,
            help=meaning + shown,
        )


def sampling_of(arguments: argparse.Namespace) -> pg.Sampling:
    """Sampling() with what the command line says otherwise."""
    given = {name: getattr(arguments, name) for name in _MEANINGS}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(_DEFAULT, **changes)


def parse_setting(name: str, text: str) -> Any:
    """The value of a field of Sampling that a text stands for.

    Raises:
        InputError: there is no such field, or the text is no value of its type.
    """
    if name not in _MEANINGS:
        raise pg.InputError(f"set: there is no setting {name!r}: it must be one of Sampling's.")
    try:
        if name == "seed":
            return None if text == "none" else int(text)
        if name == "logit_bias":
            return () if text == "none" else tuple(map(_bias, text.split(",")))
        if name == "dry_sequence_breakers":
            return json.loads(text)
        return type(getattr(_DEFAULT, name))(text)
    except (ValueError, RecursionError):
        raise pg.InputError(f"set: {name}: {text!r} is no {_kind(name)}.") from None


def setting_text(name: str, value: Any) -> str:
    """A value as `parse_setting` takes it."""
    if name == "dry_sequence_breakers":
        return json.dumps(value, ensure_ascii=False)
    if name == "logit_bias":
        return ",".join(f"{token}={bias:g}" for token, bias in value) or "none"
    return "none" if value is None else str(value)


def _argument(name: str) -> Any:
    def parsed(text: str) -> Any:
        try:
            return parse_setting(name, text)
        except pg.InputError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {_kind(name)}") from None

    return parsed


def _kind(name: str) -> str:
    kinds = {
        "seed": "whole number",
        "logit_bias": "list of biases such as 15043=-2.5,50=-inf",
        "dry_sequence_breakers": 'JSON list of texts such as ["\\n", "."]',
    }
    whole = isinstance(getattr(_DEFAULT, name), int)
    return kinds.get(name, "whole number" if whole else "number")


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)
