"""How far a long job is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True)
class Progress:
    """How far a job is. Two are equal that are equally far, at whatever time.

    Attributes:
        stage: what it does at present, such as "quantize".
        done: bytes that are done.
        total: bytes in all.
        tensor: the one it is at, or nothing. A stranger chose the name: escape it before you show
            it.
        seconds: since the job began; 0 where it does not say.

    Example:
        >>> step = Progress("quantize", done=512, total=2048, seconds=2.0)
        >>> f"{step.stage}: {step.done / step.total:.0%}"
        'quantize: 25%'
        >>> step.rate, step.seconds_left
        (256.0, 6.0)
    """

    stage: str
    done: int
    total: int
    tensor: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def rate(self) -> float:
        """Bytes/s since the job began; 0.0 while nothing is known."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """What is left to do at that rate, in seconds; None while nothing is known."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None


ProgressCallback = Callable[[Progress], None]
"""Called now and then by the thread that waits for the job; what it raises cancels the job."""
