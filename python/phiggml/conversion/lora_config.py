"""adapter_config.json of PEFT: what scales each module's LoRA, and what is none of LoRA's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phiggml.conversion.fields import Fields, is_text
from phiggml.errors import UnsupportedError

__all__ = ["AdapterConfig", "Scaling", "read_adapter_config"]

# ggml stores a scale of 0 as "none given", and a rank has to fit a matrix.
_MAX_RANK = 1 << 16
_MAX_ALPHA = 1e9
_MAX_PATTERNS = 4096
_MAX_PATTERN_LENGTH = 256
# Two unbounded repetitions in a name of a hundred characters are some thousand steps; each optional
# character doubles them, and each group multiplies them by its alternatives.
_MAX_REPETITIONS = 2
_MAX_OPTIONAL = 4
_MAX_STEPS = 200_000
_MAX_ALL_STEPS = 20_000_000
_MERGE = (
    "Merge it into its base first (PeftModel.merge_and_unload, then save_pretrained), "
    "and convert the merged checkpoint."
)
# Other ways to begin, such as "pissa" and "olora", change the base that the adapter belongs to.
_PLAIN_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
# Fields that change what the adapter computes: name, the values that leave it plain LoRA, and what
# it is otherwise.
_PLAIN: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("use_dora", (None, False), "it is a DoRA adapter, which rescales the base's columns"),
    ("use_qalora", (None, False), "it is a QALoRA adapter, which pools its input"),
    ("use_bdlora", (None,), "it is a block-diagonal adapter"),
    ("lora_bias", (None, False), "it holds biases beside its matrices (lora_bias)"),
    ("bias", (None, "none"), "the base's biases were trained (bias)"),
    ("modules_to_save", (None, []), "whole modules were trained (modules_to_save)"),
    ("trainable_token_indices", (None, [], {}), "single tokens were trained beside LoRA"),
    ("layer_replication", (None, []), "it repeats layers of its base (layer_replication)"),
    ("alora_invocation_tokens", (None, []), "it is an activated LoRA, which waits for tokens"),
    ("arrow_config", (None,), "it routes between several adapters (arrow_config)"),
    ("kasa_config", (None,), "it is a KaSA adapter"),
    ("monteclora_config", (None,), "it is a MonteCLoRA adapter"),
    ("velora_config", (None,), "it is a VeLoRA adapter"),
)


@dataclass(frozen=True)
class Scaling:
    """What B @ A of one module is multiplied by.

    Args:
        rank: of A and B.
        alpha: PEFT's lora_alpha for this module.
        root: whether alpha is divided by the root of the rank (use_rslora), not the rank.
    """

    rank: int
    alpha: float
    root: bool

    @property
    def factor(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)

    @property
    def file_alpha(self) -> float:
        """The alpha that llama.cpp has to be given, which divides by the rank."""
        return self.alpha * math.sqrt(self.rank) if self.root else self.alpha


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says about scales and the base.

    Args:
        rank, alpha, root: as in Scaling, for modules that no pattern matches.
        ranks, alphas: (expression, value) in the order of the file; the first that matches wins.
        base: base_model_name_or_path, or None.
    """

    rank: int
    alpha: float
    root: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    base: str | None

    def scaling(self, module: str) -> Scaling:
        """What scales a module, named as in the base: "model.layers.0.self_attn.qkv_proj"."""
        rank = next((v for p, v in self.ranks if p.fullmatch(module)), self.rank)
        alpha = next((v for p, v in self.alphas if p.fullmatch(module)), self.alpha)
        return Scaling(rank, alpha, self.root)


def read_adapter_config(fields: Fields) -> AdapterConfig:
    """Reads adapter_config.json, adding a fault for each field that is wrong.

    Raises:
        UnsupportedError: it is no plain LoRA adapter.
    """
    _require_lora(fields)
    base = fields.text("base_model_name_or_path", "")
    rank = fields.integer("r", 8, maximum=_MAX_RANK)
    return AdapterConfig(
        rank=rank,
        alpha=_alpha(fields, "lora_alpha", 8.0),
        root=fields.boolean("use_rslora", False),
        ranks=tuple(
            (pattern, inner.integer(key, maximum=_MAX_RANK))
            for inner, key, pattern in _patterns(fields, "rank_pattern")
        ),
        alphas=tuple(
            (pattern, _alpha(inner, key, None))
            for inner, key, pattern in _patterns(fields, "alpha_pattern")
        ),
        base=base or None,
    )


def _require_lora(fields: Fields) -> None:
    kind = fields.text("peft_type", "LORA")
    if kind.upper() != "LORA":
        raise UnsupportedError(
            f"convert-lora: {fields.path}: peft_type is {kind!r}; GGUF holds LORA only. {_MERGE}"
        )
    for name, plain, meaning in _PLAIN:
        value = fields.raw(name)
        if not any(value == item and type(value) is type(item) for item in plain):
            raise UnsupportedError(f"convert-lora: {fields.path}: {meaning}. {_MERGE}")
    beginning = fields.raw("init_lora_weights")
    if beginning is not None and beginning not in _PLAIN_BEGINNINGS:
        raise UnsupportedError(
            f"convert-lora: {fields.path}: init_lora_weights is {beginning!r}: it belongs to a "
            f"base whose weights were changed. {_MERGE}"
        )


def _alpha(fields: Fields, name: str, default: float | None) -> float:
    """An alpha. llama.cpp takes 0 for "not scaled", where PEFT takes it for "no effect"."""
    return fields.number(name, default, maximum=_MAX_ALPHA)


def _patterns(fields: Fields, name: str) -> list[tuple[Fields, str, re.Pattern[str]]]:
    """The keys of rank_pattern or alpha_pattern, as expressions over the whole module name."""
    given = fields.raw(name)
    inner = fields.inner(name)
    if not isinstance(given, Mapping):
        return []
    if len(given) > _MAX_PATTERNS:
        fields.fault(name, f"holds {len(given)} expressions; {_MAX_PATTERNS} are read.")
        return []
    found = []
    n_steps = 0
    for key in given:
        pattern = _compiled(key)
        n_steps += 0 if pattern is None else _steps(key)
        if pattern is None or n_steps > _MAX_ALL_STEPS:
            inner.fault(
                key,
                "is no expression over module names that can be matched in bounded time: at most "
                f"{_MAX_PATTERN_LENGTH} characters and {_MAX_REPETITIONS} repetitions, none of a "
                "group, and few alternatives.",
            )
        else:
            found.append((inner, key, pattern))
    return found


def _compiled(key: str) -> re.Pattern[str] | None:
    """PEFT's meaning of a key: it matches a module's name, or the end of it behind a dot."""
    if not is_text(key) or len(key) > _MAX_PATTERN_LENGTH:
        return None
    if (
        re.search(r"\)[*+?{]", key)
        or len(re.findall(r"[*+{]", key)) > _MAX_REPETITIONS
        or len(re.findall(r"(?<!\()\?", key)) > _MAX_OPTIONAL
        or re.search(r"\(\?[^:=!<]", key)  # flags and comments hide what is repeated
        or _steps(key) > _MAX_STEPS
    ):
        return None
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})")
    except (re.error, OverflowError, RecursionError):
        return None


def _steps(key: str) -> int:
    """At most how many ways an expression has to match a name of a hundred characters."""
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "_", key, flags=re.DOTALL)
    steps = 100 ** len(re.findall(r"[*+{]", plain)) << len(re.findall(r"(?<!\()\?", plain))
    alternatives = [1]
    for character in plain:
        if character == "(":
            alternatives.append(1)
        elif character == "|":
            alternatives[-1] += 1
        elif character == ")" and len(alternatives) > 1:
            steps *= alternatives.pop()
    return int(steps * math.prod(alternatives))
