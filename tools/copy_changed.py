"""Copies files and folders into a folder, leaving alone what is the same there, its time included.

A build folder beside them then stays good when a checkout was copied anew and all its times are.

    python tools/copy_changed.py SOURCE... TARGET
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path


def files_of(source: Path) -> Iterator[Path]:
    """A file itself, or all files in a folder."""
    if source.is_file():
        yield source
    else:
        yield from (path for path in sorted(source.rglob("*")) if path.is_file())


def copy_changed(sources: list[Path], target: Path) -> tuple[int, int]:
    """Makes TARGET/SOURCE what SOURCE is, for each of some relative paths.

    Returns:
        How many files were copied, and how many removed that are no longer there.
    """
    wanted: set[Path] = set()
    n_copied = 0
    for path in (path for source in sources for path in files_of(source)):
        copy = target / path
        wanted.add(copy)
        if not copy.is_file() or not filecmp.cmp(path, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            n_copied += 1
    stale = [path for source in sources for path in files_of(target / source) if path not in wanted]
    for path in stale:
        path.unlink()
    return n_copied, len(stale)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    copied, removed = copy_changed(arguments.sources, arguments.target)
    print(f"{arguments.target}: {copied} files copied, {removed} removed")


if __name__ == "__main__":
    main()
