"""Names of the types that a whole model, or one of its tensors, can become."""

from __future__ import annotations

import difflib

from phiggml import _core
from phiggml.errors import InputError
from phiggml.quant import quant_types

__all__ = ["file_type", "has_blocks", "model_type", "model_types", "short", "tensor_type"]

# Whole-model types whose tensor type is a plain number.
_PLAIN = {"F32", "F16", "BF16"}
_MOST_SHOWN = 60


def model_types() -> tuple[str, ...]:
    """Lists the types that a whole model can be quantized to.

    Returns:
        Canonical names, such as "Q4_K_M".

    Source:
        llama-quantize's list, less its aliases and COPY.

    Example:
        >>> len(model_types()), "Q4_K_M" in model_types()
        (35, True)
    """
    return tuple(name for name, _ in _core.recipe.model_types())


def model_type(name: str) -> str:
    """Returns the canonical name of a whole-model type.

    Args:
        name: any case.

    Raises:
        InputError: there is no such type.

    Example:
        >>> model_type("q4_k_m")
        'Q4_K_M'
    """
    canonical = name.upper() if isinstance(name, str) else ""
    if canonical not in model_types():
        nearest = difflib.get_close_matches(canonical, model_types(), n=3, cutoff=0.75)
        meant = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        raise InputError(
            f"recipe: {short(name)}: no model can be quantized to this type. {meant}"
            f"Choose one of {', '.join(model_types())}."
        )
    return canonical


def file_type(type: str) -> int:
    """Returns the value of general.file_type for a canonical whole-model type."""
    return dict(_core.recipe.model_types())[type]


def has_blocks(type: str) -> bool:
    """Whether the tensor type of a canonical whole-model type has blocks."""
    return type not in _PLAIN


def tensor_type(name: str, what: str) -> str:
    """Returns the canonical name of a type that tensors can be converted to.

    Args:
        name: any case.
        what: where it was given, for the error.

    Raises:
        InputError: no tensor can be converted to it.
    """
    if not isinstance(name, str) or name.upper() not in quant_types():
        raise InputError(
            f"recipe: {what}: {short(name)} is no type that a tensor can be converted to. "
            f"Choose one of {', '.join(quant_types())}."
        )
    return name.upper()


def short(value: object) -> str:
    """What was given, as Python writes it; a file can hold strings as long as itself."""
    shown = repr(value[: _MOST_SHOWN + 1] if isinstance(value, str) else value)
    return shown if len(shown) <= _MOST_SHOWN + 2 else f"{shown[:_MOST_SHOWN]}..."
