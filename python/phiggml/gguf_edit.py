"""Editing the metadata and the tensors' names of GGUF files, in place where a kill does no harm."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiggml.errors import InputError
from phiggml.gguf import GGUFFile
from phiggml.gguf_edit_plan import EditRequest, edit_headers
from phiggml.gguf_edit_write import EditedFile, changed_meanwhile, locked
from phiggml.progress import ProgressCallback

__all__ = ["GGUFEdit", "edit_gguf"]

_TRIES = 5


@dataclass(frozen=True)
class GGUFEdit:
    """What edit_gguf did, or with dry_run would do.

    Attributes:
        path: the file that was edited; of several parts, the first of them.
        paths: all that were edited.
        in_place: whether bytes were changed where they lie; False: the file was written anew.
        changed: keys, and names of tensors, that are new, changed, renamed (the new one) or gone.
        nbytes: what was written.
        dry_run: whether nothing was, because that was asked.

    Example:
        >>> str(GGUFEdit("m.gguf", ("m.gguf",), True, ("general.name",), 12, False))
        'm.gguf: general.name changed in place, 12 bytes written'
    """

    path: str
    paths: tuple[str, ...]
    in_place: bool
    changed: tuple[str, ...]
    nbytes: int
    dry_run: bool

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.path}: nothing to change"
        names = ", ".join(self.changed) if len(self.changed) <= 4 else f"{len(self.changed)} names"
        files = self.path if len(self.paths) == 1 else f"{self.path} and {len(self.paths) - 1} more"
        manner = "in place" if self.in_place else "by writing the file anew"
        nbytes = f"{self.nbytes:,} byte{'' if self.nbytes == 1 else 's'}"
        would, be = ("would be ", "to write") if self.dry_run else ("", "written")
        return f"{files}: {names} {would}changed {manner}, {nbytes} {be}"


def edit_gguf(
    path: str | os.PathLike[str],
    *,
    set: Mapping[str, Any] | None = None,
    unset: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    rename_tensors: Mapping[str, str] | None = None,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> GGUFEdit:
    """Changes metadata and names of tensors; the tensors' data stay as they are.

    A kill leaves the file as it was or as it shall be, whole: bytes are changed in place where all
    of them lie in one page of 4096 bytes or in the padding that GGUFWriter leaves in large files
    (`phiggml.padding`), which takes up differences in size; otherwise the file is written anew.

    Args:
        path: the file; of a split model any part: metadata are those of the first part.
        set: key -> value, as GGUFWriter.metadata takes them. A key that is there keeps its type,
            which the value must fit; GGUFValue changes it. Others are added.
        unset: keys to remove.
        rename: old key -> new key.
        rename_tensors: old name -> new name.
        dry_run: True only says what would be done.
        progress: called with a Progress while a file is written anew.

    Returns:
        A GGUFEdit.

    Raises:
        InputError: keys or tensors that are not there, names or values that GGUF cannot hold, two
            of one name, general.alignment, split.*: all faults together, and nothing is written.
        FormatError: the file is no valid GGUF, or it changes meanwhile.
        OSError: a file cannot be written; it is as it was.

    Cost:
        In place up to three small writes, else a copy of the file. A lock (flock) keeps other
        edits out. Version 1 and big-endian ones are written anew, as version 3, little-endian.

    Source:
        The GGUF specification. Linux copies writes page by page, and a kill waits for the page.

    Example:
        >>> import pathlib, tempfile
        >>> from phiggml import GGUFWriter, edit_gguf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "small.gguf"
        ...     with GGUFWriter(path) as w:
        ...         w.metadata["general.name"] = "smal"
        ...     edit_gguf(path, set={"general.name": "small"}).in_place
        True
    """
    renames = dict(rename or {}), dict(rename_tensors or {})
    request = EditRequest(dict(set or {}), _names(unset), *renames)
    return _edit(os.fspath(path), request, dry_run=dry_run, progress=progress)


def _edit(
    path: str, request: EditRequest, *, dry_run: bool, progress: ProgressCallback | None
) -> GGUFEdit:
    for _ in range(_TRIES):
        files = _plan(path, request)
        edited = [file for file in files if file.edited.changed]
        for file in edited:
            file.require_writable()
        if dry_run or _write(edited, progress):
            return _result(files[0].path, edited, dry_run=dry_run)
    raise changed_meanwhile(path)


def _names(names: Collection[str]) -> Collection[str]:
    if isinstance(names, str):
        raise InputError(f"edit_gguf: unset={names!r}: it must be a collection. Pass [key].")
    return dict.fromkeys(names)


def _plan(path: str, request: EditRequest) -> list[EditedFile]:
    with GGUFFile(path) as model:
        parts = [EditedFile.opened(Path(part).resolve()) for part in model.paths]
        headers = [part.edited.header for part in parts]
        edited = edit_headers(headers, model.metadata, request, path=path)
    return [part.with_edit(one) for part, one in zip(parts, edited, strict=True)]


def _write(edited: Sequence[EditedFile], progress: ProgressCallback | None) -> bool:
    """Writes the files, unless one of them is no longer what was planned upon."""
    with ExitStack() as locks:
        opened = [locks.enter_context(locked(file.path)) for file in edited]
        if not all(map(EditedFile.is_current, edited, opened)):
            return False
        for file, descriptor in zip(edited, opened, strict=True):
            file.write(descriptor, progress)
    return True


def _result(first: Path, edited: list[EditedFile], *, dry_run: bool) -> GGUFEdit:
    paths = tuple(os.fspath(file.path) for file in edited) or (os.fspath(first),)
    return GGUFEdit(
        path=paths[0],
        paths=paths,
        in_place=all(file.patch is not None for file in edited),
        changed=tuple(name for file in edited for name in file.edited.changed),
        nbytes=sum(file.nbytes_to_write for file in edited),
        dry_run=dry_run,
    )
