"""JSON files of a checkpoint, read within a size limit."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from phiggml.errors import FormatError

__all__ = [
    "LARGE_LIMIT",
    "SMALL_LIMIT",
    "parse_object",
    "read_bytes",
    "read_object",
    "regular_size",
]

# Released configurations are kilobytes; the largest tokenizer.json in use is about 35 MB.
SMALL_LIMIT = 16 << 20
LARGE_LIMIT = 64 << 20


def regular_size(path: Path) -> int:
    """Returns the size of a regular file; a pipe or device, which could block, is refused."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(
            f"read checkpoint: {path}: is no regular file. Give a folder of plain files.",
            path=str(path),
        )
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    size = regular_size(path)
    if size > limit:
        raise FormatError(
            f"read checkpoint: {path}: holds {size} bytes; such a file may hold {limit}.",
            path=str(path),
        )
    with path.open("rb") as file:
        return file.read(limit)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} occurs twice in one object")
            seen.add(key)
    return result


def parse_object(
    data: bytes, path: Path, *, offset: int = 0, unique: bool = False
) -> dict[str, Any]:
    """Parses bytes that must be one JSON object; `unique` refuses a key that occurs twice."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_refuse_duplicates if unique else None
        )
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", None)
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FormatError(
            f"read checkpoint: {path}: is not valid JSON ({reason}). Fetch the file again.",
            path=str(path),
            offset=offset + at if isinstance(at, int) else offset,
        ) from None
    if not isinstance(value, dict):
        raise FormatError(
            f"read checkpoint: {path}: holds a JSON {type(value).__name__}; an object is needed.",
            path=str(path),
            offset=offset,
        )
    return value


def read_object(path: Path, *, limit: int = SMALL_LIMIT, unique: bool = False) -> dict[str, Any]:
    """Reads one JSON object from a file of at most `limit` bytes."""
    return parse_object(read_bytes(path, limit), path, unique=unique)
