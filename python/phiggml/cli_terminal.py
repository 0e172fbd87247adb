"""What the command line writes: text that cannot steer a terminal, tables, and a progress bar."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Sequence
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "note",
    "parse_size",
    "pour",
    "printable",
    "say",
    "say_json",
    "size",
    "table",
]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Work that is done sooner needs no bar.
_BAR_AFTER_SECONDS = 0.3


def printable(text: str) -> str:
    """The text with control characters spelled out: names and answers are strangers'."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str = "") -> None:
    """Writes a line, or lines, to stdout."""
    sys.stdout.write(f"{printable(text)}\n")


def say_json(document: Any) -> None:
    """Writes a JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def pour(text: str) -> None:
    """Writes a piece of an answer to stdout, at once; into a pipe or file just as it is."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str, *, stream: TextIO | None = None) -> None:
    """Writes a line beside the matter, dim where colours are welcome; to stderr unless told."""
    stream = sys.stderr if stream is None else stream
    line = printable(text)
    stream.write(f"\x1b[2m{line}\x1b[0m\n" if _takes_colour(stream) else f"{line}\n")
    stream.flush()


def size(nbytes: int) -> str:
    """Bytes in decimal units, three digits."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.{2 if nbytes < 100 * unit else 0}f} {name}"
    return f"{nbytes} bytes"


def parse_size(text: str) -> int:
    """A number of bytes, or one in decimal units: what `type=` of an argument takes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 2G")
    return int(Decimal(found[1]) * _UNITS[found[2].upper()])


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> str:
    """Columns of text; those numbered in `right` are set to the right. Fits the terminal."""
    lines = [[printable(cell).replace("\n", " ") for cell in row] for row in [heading, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return "\n".join(
        _clipped(
            "  ".join(
                cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
                for i, cell in enumerate(line)
            ).rstrip(),
            width,
        )
        for line in lines
    )


class _Event(Protocol):
    """A phiggml.Progress."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


class ProgressBar:
    """What to pass as progress=: a bar on stderr while the work lasts, if that is a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: _Event) -> None:
        if not self._shown:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=event.stage,
                total=event.total,
                unit="B",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                delay=_BAR_AFTER_SECONDS,
                file=sys.stderr,
            )
        self._bar.update(event.done - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _takes_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _clipped(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
