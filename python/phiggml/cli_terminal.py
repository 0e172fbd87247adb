"""What the command line writes: text that cannot steer a terminal, tables, and a progress bar."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from phiggml.gguf_text import escaped, one_line

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "flush",
    "murmur",
    "note",
    "parse_size",
    "pour",
    "printable",
    "say",
    "say_json",
    "say_report",
    "say_table",
    "size",
    "table",
]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# What a text may hold beside what str.isprintable takes: the spaces of other scripts, and what
# joins letters or parts them, which some languages cannot be written without.
_IN_TEXT = (
    "\t\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u200c\u200d\u202f\u205f\u3000"
)
_MOST_CELL_CHARACTERS = 100
# Work that is done sooner needs no bar.
_BAR_AFTER_SECONDS = 0.3
_COLUMNS_WHERE_UNKNOWN = 80
# What a terminal shows for the key, behind the bar: there is room, lest it take another line.
_CTRL_C = "^C "
# Figures take about 52 columns; a line that has no room for a name and some bar shows less.
_COLUMNS_OF_A_WIDE_BAR = 72
_SHORTEST_NAME, _LONGEST_NAME = 12, 32


def printable(text: str) -> str:
    """The lines with what cannot be printed spelled out: names and answers are strangers'."""
    return "\n".join(escaped(line, kept=_IN_TEXT) for line in text.split("\n"))


def say(text: str = "") -> None:
    """Writes a line, or lines, to stdout."""
    _write(f"{printable(text)}\n")


def say_json(document: Any) -> None:
    """Writes a JSON document to stdout."""
    _write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def say_report(
    arguments: argparse.Namespace,
    report: object,
    *,
    document: Callable[[], Any],
    summary: Callable[[], str],
) -> int:
    """The end of a verb that writes a file, as --json, --dry-run and --quiet ask; exit code 0."""
    if arguments.json:
        say_json(document())
    elif arguments.dry_run:
        say(str(report))
    elif not arguments.quiet:
        say(summary())
    return 0


def pour(text: str) -> None:
    """Writes a piece of an answer to stdout, at once; into a pipe or file just as it is."""
    _write(printable(text) if sys.stdout.isatty() else text)
    flush()


def flush() -> None:
    """Sends on what was written to stdout."""
    with _named():
        sys.stdout.flush()


def _write(text: str) -> None:
    with _named():
        sys.stdout.write(text)


@contextmanager
def _named() -> Iterator[None]:
    """A disk that is full behind stdout is not that of the file that a verb writes."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = "stdout"
        raise


def murmur(text: str) -> None:
    """Writes a piece of what is beside the matter to stderr, at once, dim as a note."""
    shown = printable(text) if sys.stderr.isatty() else text
    sys.stderr.write(f"\x1b[2m{shown}\x1b[0m" if shown and _takes_colour(sys.stderr) else shown)
    sys.stderr.flush()


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
    """Columns of text; those numbered in `right` are set to the right. Fits the terminal.

    What is too long for a cell is cut off, and nothing in it makes another line.
    """
    return "\n".join(_table_lines(heading, rows, right))


def say_table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> None:
    """Writes a table to stdout, line by line."""
    for line in _table_lines(heading, rows, right):
        say(line)


def _table_lines(
    heading: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]
) -> Iterator[str]:
    lines = [[_cell(cell) for cell in row] for row in [heading, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for line in lines:
        padded = (
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(line)
        )
        yield _clipped("  ".join(padded).rstrip(), width)


def _cell(text: str) -> str:
    return _clipped(escaped(text[: _MOST_CELL_CHARACTERS + 1]), _MOST_CELL_CHARACTERS)


class _Event(Protocol):
    """A phiggml.Progress."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def tensor(self) -> str: ...


class ProgressBar:
    """What to pass as progress=: a bar on stderr while the work lasts, if that is a terminal."""

    def __init__(self, *, quiet: bool = False, unit: str = "B") -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._unit = unit
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: _Event) -> None:
        if not self._shown:
            return
        width = max(_columns_of_terminal() - len(_CTRL_C), 1)
        bar = self._bar
        if bar is None or self._stage != event.stage:
            bar = self._begun(event, width)
        bar.ncols = width
        bar.bar_format = _bar_format(width, named=bool(event.tensor))
        bar.postfix = _shown_name(event.tensor, width) if event.tensor else None
        bar.update(event.done - bar.n)

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
            if kind is KeyboardInterrupt:
                sys.stderr.write(f"\r{' ' * (_columns_of_terminal() - 1)}\r")

    def _begun(self, event: _Event, width: int) -> tqdm[Any]:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._stage = event.stage
        self._bar = tqdm(
            desc=event.stage,
            total=event.total,
            unit=self._unit,
            unit_scale=True,
            leave=False,
            delay=_BAR_AFTER_SECONDS,
            # Types differ in speed: some seconds count, not tqdm's few tenths. And when little is
            # done in the time of much, the bar must not stand still.
            smoothing=0.05,
            miniters=1,
            # Both given: else it hides the bar on a terminal that does not tell its size.
            ncols=width,
            nrows=20,
            bar_format=_bar_format(width, named=False),
            file=sys.stderr,
        )
        return self._bar


def _columns_of_terminal() -> int:
    """Of that behind stderr, where the bar is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS_WHERE_UNKNOWN
    except (OSError, ValueError):
        return _COLUMNS_WHERE_UNKNOWN


def _bar_format(width: int, *, named: bool) -> str:
    """What tqdm shows in a line of so many columns; it cuts off what is too long."""
    if width >= _COLUMNS_OF_A_WIDE_BAR:
        return (
            "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, "
            "{remaining} left{postfix}"
        )
    if named:
        return "{percentage:3.0f}%, {remaining} left, {rate_noinv_fmt}{postfix}"
    return "{desc} {percentage:3.0f}%|{bar}| {remaining} left"


def _shown_name(name: str, width: int) -> str:
    """A stranger's name, in columns that stay as many, lest the bar become longer and shorter."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    # No character takes less than a column: no more of them are looked at.
    shown = one_line(name[:width]).encode(encoding, "backslashreplace").decode(encoding)
    if width < _COLUMNS_OF_A_WIDE_BAR:
        return shown
    room = min(width - _COLUMNS_OF_A_WIDE_BAR + _SHORTEST_NAME, _LONGEST_NAME)
    if (columns := _columns(shown)) <= room:
        return shown + " " * (room - columns)
    while columns > room - 3:
        columns -= _columns(shown[-1])
        shown = shown[:-1]
    return shown + "..." + " " * (room - 3 - columns)


def _columns(text: str) -> int:
    """How many a terminal takes for it."""
    return sum(2 if unicodedata.east_asian_width(c) in "FW" else 1 for c in text)


def _takes_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _clipped(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
