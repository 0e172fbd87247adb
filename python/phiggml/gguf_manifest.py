"""Saved hashes of GGUF files, as `phiggml gguf hash` and llama-gguf-hash print them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phiggml.errors import FormatError, InputError
from phiggml.gguf_hash import HASH_ALGORITHMS, GGUFHash
from phiggml.gguf_text import one_line

__all__ = ["ManifestFinding", "check_manifest", "manifest_algorithm", "read_manifest"]

_LINE = re.compile(r"(\w+)\s+([0-9a-fA-F-]+)\s+(\S.*)")


@dataclass(frozen=True)
class ManifestFinding:
    """What became of a line of a manifest, or of something that has none.

    Attributes:
        what: FILE:TENSOR, FILE or FILE#metadata.
        digest: the hash that was found; empty where the file has no such tensor.
        verdict: "Ok", "Mismatch", "Not Found" (in the manifest) or "Missing" (in the file).
    """

    what: str
    digest: str
    verdict: str


def read_manifest(path: str | os.PathLike[str], file: str) -> dict[str, dict[str, str]]:
    """Reads what a manifest says about a file, of which the folder does not matter.

    Args:
        path: the manifest.
        file: the file's path.

    Returns:
        algorithm -> (":TENSOR", "" for all data, or "#metadata") -> hash.

    Raises:
        FormatError: a line that is none of a manifest.
        OSError: it cannot be read.
    """
    name = re.escape(one_line(Path(file).name))
    of_file = re.compile(rf"(?:.*?/)?{name}((?:[:#].*)?)")
    found: dict[str, dict[str, str]] = {}
    text = Path(path).read_text("utf-8", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        parsed = _LINE.fullmatch(line.rstrip())
        if parsed is None and line.strip():
            raise FormatError(
                f"hash: {os.fspath(path)}: line {number} is no hash of a manifest: {line[:80]!r}.",
                path=os.fspath(path),
            )
        place = of_file.fullmatch(parsed[3]) if parsed is not None else None
        if parsed is not None and place is not None:
            found.setdefault(parsed[1], {}).setdefault(place[1], parsed[2].lower())
    return found


def manifest_algorithm(entries: dict[str, dict[str, str]], manifest: str, file: str) -> str:
    """The best algorithm that a manifest has hashes of.

    Raises:
        InputError: it has none that are known here.
    """
    for algorithm in HASH_ALGORITHMS:
        if algorithm in entries:
            return algorithm
    others = f" (its own are {', '.join(entries)})" if entries else ""
    raise InputError(
        f"hash: {manifest}: it has no {', '.join(HASH_ALGORITHMS)} of {Path(file).name}{others}. "
        "Make a manifest of this file."
    )


def check_manifest(
    found: GGUFHash, entries: dict[str, dict[str, str]]
) -> Sequence[ManifestFinding]:
    """Compares hashes with saved ones.

    Args:
        found: of the file as it is now.
        entries: of read_manifest.

    Returns:
        One finding for each line of `found`, and for each tensor that only the manifest has. What
        a manifest leaves out altogether (tensors, or the metadata) is not looked for.

    Raises:
        InputError: the manifest has nothing by this algorithm.
    """
    saved = dict(entries.get(found.algorithm, {}))
    if not saved:
        raise InputError(
            f"hash: the manifest has no {found.algorithm} of {Path(found.path).name}. "
            f"It has: {', '.join(entries) or 'nothing'}."
        )
    file = one_line(found.path)
    with_tensors = any(suffix.startswith(":") for suffix in saved)
    findings = []
    for what, digest in found.lines():
        suffix = what[len(file) :]
        wanted = saved.pop(suffix, None)
        if wanted is not None:
            findings.append(ManifestFinding(what, digest, "Ok" if wanted == digest else "Mismatch"))
        elif suffix.startswith(":") and with_tensors:
            findings.append(ManifestFinding(what, digest, "Not Found"))
    return [*findings, *(ManifestFinding(file + suffix, "", "Missing") for suffix in saved)]
