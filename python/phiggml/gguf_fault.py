"""What may be wrong with a GGUF file, at a place that has a name."""

from __future__ import annotations

from dataclasses import dataclass

from phiggml.gguf_text import escaped

__all__ = ["GGUFFault"]


@dataclass(frozen=True)
class GGUFFault:
    """One thing that is wrong with a GGUF file. str() is one line.

    Attributes:
        message: what is wrong, and what to do.
        offset: where in the file, in bytes; None when no one place is at fault.
        tensor: whose data are at fault, or None.
        path: the file; of a split model, the part.
    """

    message: str
    offset: int | None = None
    tensor: str | None = None
    path: str = ""

    def __str__(self) -> str:
        message = escaped(self.message)
        return message if self.offset is None else f"byte {self.offset}: {message}"
