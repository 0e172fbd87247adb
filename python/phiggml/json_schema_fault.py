"""How a JSON schema is refused: where in it, why, and what to do."""

from __future__ import annotations

from phiggml.errors import InputError, UnsupportedError

__all__ = ["unheeded", "wrong"]


def wrong(path: str, rule: str, remedy: str = "Correct the schema.") -> InputError:
    """What no JSON schema may say, or no value can satisfy."""
    return InputError(f"json_schema: {path[:200]}: {rule}. {remedy}")


def unheeded(path: str, rule: str, remedy: str = "Remove it.") -> UnsupportedError:
    """What a schema may say, but a grammar would not."""
    return UnsupportedError(f"json_schema: {path[:200]}: {rule}. {remedy}")
