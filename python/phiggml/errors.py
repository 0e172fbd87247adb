"""What phiggml raises. Each message is a sentence: operation, offender, rule, remedy."""

from __future__ import annotations

from typing import Any

__all__ = [
    "DeviceError",
    "FormatError",
    "InputError",
    "PhiggmlError",
    "SessionError",
    "UnsupportedError",
]


class PhiggmlError(Exception):
    """The base of all errors that phiggml raises (file-system failures stay OSError)."""


class InputError(PhiggmlError, ValueError):
    """The call is wrong: a shape, dtype, range, or an unknown name."""


class FormatError(PhiggmlError, ValueError):
    """The bytes are no valid GGUF file, checkpoint or tokenizer.

    Attributes:
        path: the file, or None when it has none.
        offset: where in the file the fault lies, in bytes, or None when no one place is at fault.
    """

    def __init__(
        self, message: str = "", *, path: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class UnsupportedError(PhiggmlError, NotImplementedError):
    """Valid, but not done here."""


class DeviceError(PhiggmlError, RuntimeError):
    """A backend or device is absent, out of memory, or refused by its driver."""


class SessionError(PhiggmlError, RuntimeError):
    """The context is full or closed, used from two threads at once, or decoding failed.

    Attributes:
        completion: where an answer could not go on, as in a full context, the Completion of what
            was written until then, with the finish_reason "failed"; else None.
        completions: where that happened to `generate_batch`, a Completion for each prompt, in
            order: of those that had ended as well as of those that had not; else empty.
    """

    # A Completion lies above the errors: its type cannot be named here.
    completion: Any = None
    completions: tuple[Any, ...] = ()
