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

# What follows the second gap may itself begin or end with blanks.
_LINE = re.compile(r"(\w+) {2,}([0-9a-fA-F-]+) {2}(.+)")
_MOST_NAMES = 3


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
        FormatError: a line that is none of a manifest, or two that disagree.
        InputError: it has hashes of several files of this name, none of them by this path.
        OSError: it cannot be read.
    """
    manifest = os.fspath(path)
    of_folders: dict[str, dict[str, dict[str, str]]] = {}
    place = _Place(file)
    text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        parsed = _LINE.fullmatch(line.removesuffix("\r"))
        if parsed is None and line.strip():
            raise FormatError(
                f"hash: {manifest}: line {number} is no hash of a manifest: {line[:80]!r}.",
                path=manifest,
            )
        at = None if parsed is None else place.of(parsed[3])
        if parsed is None or at is None:
            continue
        folder, suffix = at
        hashes = of_folders.setdefault(folder, {}).setdefault(parsed[1], {})
        digest = parsed[2].lower()
        if hashes.setdefault(suffix, digest) != digest:
            raise FormatError(
                f"hash: {manifest}: line {number} is another hash of what an earlier line has: "
                f"{parsed[3][:80]!r}.",
                path=manifest,
            )
    if place.folder in of_folders or not of_folders:
        return of_folders.get(place.folder, {})
    if len(of_folders) > 1:
        names = ", ".join(repr(folder + place.name) for folder in list(of_folders)[:_MOST_NAMES])
        raise InputError(
            f"hash: {manifest}: it has hashes of {len(of_folders)} files of this name: {names}. "
            "Give the file's path as it stands there."
        )
    (found,) = of_folders.values()
    return found


class _Place:
    """Which lines of a manifest are about a file.

    Attributes:
        folder: the file's, as given; "" or ending in a slash.
        name: without the folder.
    """

    def __init__(self, file: str) -> None:
        path = one_line(file)
        self.folder, self.name = path[: path.rfind("/") + 1], path[path.rfind("/") + 1 :]
        suffix = r"(|#metadata|:.*)"
        self._exact = re.compile(rf"({re.escape(self.folder)}){re.escape(self.name)}{suffix}")
        # A folder with a colon may as well be another file's name and a tensor's.
        self._elsewhere = re.compile(rf"((?:[^:]*/)?){re.escape(self.name)}{suffix}")

    def of(self, what: str) -> tuple[str, str] | None:
        """The folder and the suffix of a line about this file, or one of its name."""
        found = self._exact.fullmatch(what) or self._elsewhere.fullmatch(what)
        return None if found is None else (found[1], found[2])


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
