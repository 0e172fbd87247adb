"""How far a long job is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: what it does at present, such as "quantize".
        done: bytes that are done.
        total: bytes in all.

    Example:
        >>> step = Progress("quantize", done=512, total=2048)
        >>> f"{step.stage}: {step.done / step.total:.0%}"
        'quantize: 25%'
    """

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]
"""Called now and then by the thread that waits for the job; what it raises cancels the job."""
