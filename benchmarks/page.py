"""Figures on a page of docs/, between two marker lines."""

from __future__ import annotations

from pathlib import Path


def write_between(page: Path, script: str, text: str) -> None:
    """Replace what stands between the marker lines of ``script`` in ``page``."""
    marks = f"<!-- {script} writes from here -->", "<!-- to here -->"
    before, begin, rest = page.read_text("utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise SystemExit(f"{page}: the lines {marks[0]} and {marks[1]} are not there.")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")
