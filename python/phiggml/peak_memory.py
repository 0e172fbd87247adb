"""The most memory that this process held, beside the files that it has mapped."""

from __future__ import annotations

import re
import time
from pathlib import Path

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)
_EVERY_SECONDS = 0.02


class PeakMemory:
    """Looks now and then, as the kernel keeps no such peak.

    Attributes:
        nbytes: of anonymous memory, the most that was seen; 0 where the system does not tell.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._next = 0.0

    def look(self) -> None:
        """Looks, unless it did a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        try:
            found = _ANONYMOUS.search(_STATUS.read_text("ascii"))
        except (OSError, UnicodeDecodeError):
            return
        if found is not None:
            self.nbytes = max(self.nbytes, int(found[1]) * 1024)
