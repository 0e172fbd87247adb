"""Editing the metadata and the tensors' names of GGUF files, in place where a kill does no harm."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile
from phiggml.gguf_edit_plan import EditRequest, edit_headers
from phiggml.gguf_edit_write import (
    EditedFile,
    OriginalFile,
    RewriteProgress,
    changed_meanwhile,
    locked,
)
from phiggml.gguf_remote import is_url
from phiggml.gguf_replacement import Replacement
from phiggml.progress import ProgressCallback

__all__ = ["GGUFEdit", "edit_gguf", "require_local_path"]

_TRIES = 10


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
        leaves_links_behind: whether a file that was written anew has other names (hard links):
            they keep the old content.

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
    leaves_links_behind: bool = False

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.path}: nothing to change"
        names = ", ".join(self.changed) if len(self.changed) <= 4 else f"{len(self.changed)} names"
        files = self.path if len(self.paths) == 1 else f"{self.path} and {len(self.paths) - 1} more"
        manner = "in place" if self.in_place else "by writing the file anew"
        nbytes = f"{self.nbytes:,} byte{'' if self.nbytes == 1 else 's'}"
        would, be = ("would be ", "to write") if self.dry_run else ("", "written")
        links = "; other names of the file keep the old content" if self.leaves_links_behind else ""
        return f"{files}: {names} {would}changed {manner}, {nbytes} {be}{links}"


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

    A kill leaves a file as it was or as it shall be, whole: bytes are changed in place where all
    of them lie in one page of 4096 bytes or in the padding that GGUFWriter leaves in large files
    (`phiggml.padding`), which takes up differences in size; otherwise the file is written anew.
    Parts of a split model are prepared together and changed one after the other: a kill or a
    failure in between leaves some of them changed, each of them whole.

    Args:
        path: the file, no URL; of a split model any part: metadata are those of the first part.
        set: key -> value, as GGUFWriter.metadata takes them. A key that is there keeps its type,
            which the value must fit; GGUFValue changes it. Others are added.
        unset: keys to remove.
        rename: old key -> new key.
        rename_tensors: old name -> new name.
        dry_run: True only says what would be done.
        progress: called with a Progress while files are written anew.

    Returns:
        A GGUFEdit.

    Raises:
        InputError: keys or tensors that are not there, names or values that GGUF cannot hold, two
            of one name, general.alignment, split.* of what is split: all faults together, and
            nothing is written. A URL, a path of bytes or with NUL.
        FormatError: the file is no valid GGUF, or it changes meanwhile again and again.
        OSError: a file cannot be written; it is as it was, unless the message says that an edit
            in place may stand, or that some parts are done.

    Cost:
        In place up to three small writes, else a copy of the file, its owner and permissions. A
        lock (flock) keeps other edits out; what others publish meanwhile is edited in its turn.
        Version 1 and big-endian ones are written anew, as version 3, little-endian.

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
    return _edit(require_local_path(path), request, dry_run=dry_run, progress=progress)


def require_local_path(path: str | os.PathLike[str]) -> str:
    """Checks that a path may lead to a file that can be written to.

    Raises:
        InputError: it is a URL, bytes or something else, or holds NUL.
    """
    given = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(given, str):
        raise InputError(f"edit_gguf: {given!r}: a path must be str or os.PathLike[str].")
    if is_url(given):
        raise InputError(
            f"edit_gguf: {given}: files behind URLs cannot be changed. Download it and edit that."
        )
    if "\0" in given:
        raise InputError(f"edit_gguf: {given!r}: a path cannot hold NUL.")
    return given


def _edit(
    path: str, request: EditRequest, *, dry_run: bool, progress: ProgressCallback | None
) -> GGUFEdit:
    broken: FormatError | None = None
    for _ in range(_TRIES):
        try:
            first, edited = _plan(path, request)
            broken = None
            if dry_run or _write(edited, progress):
                return _result(first, edited, dry_run=dry_run)
        except FormatError as error:
            # It may have been read while somebody wrote.
            broken = error
    raise broken or changed_meanwhile(path)


def _names(names: Collection[str]) -> Collection[str]:
    if isinstance(names, str):
        raise InputError(f"edit_gguf: unset={names!r}: it must be a collection. Pass [key].")
    return dict.fromkeys(names)


def _plan(path: str, request: EditRequest) -> tuple[Path, list[EditedFile]]:
    """The first file of the model, and those to be edited."""
    with GGUFFile(path) as model:
        paths = [Path(os.path.realpath(part)) for part in model.paths]
    with OriginalFile.opening(paths[0]) as (first, metadata):
        files = [first, *map(_read, paths[1:])]
        headers = edit_headers([file.header for file in files], metadata, request, path=path)
    pairs = zip(files, headers, strict=True)
    edited = [EditedFile.planned(file, header) for file, header in pairs if header.changed]
    for file in edited:
        file.require_writable()
    return first.path, edited


def _read(path: Path) -> OriginalFile:
    with OriginalFile.opening(path) as (file, _):
        return file


def _write(edited: Sequence[EditedFile], progress: ProgressCallback | None) -> bool:
    """Writes the files, unless one of them is no longer what was planned upon."""
    rewritten = [file.original.data_bytes for file in edited if file.patch is None]
    counted = RewriteProgress(progress, sum(rewritten))
    with ExitStack() as stack:
        opened = [stack.enter_context(locked(file.path)) for file in edited]
        if not _are_current(edited, opened):
            return False
        prepared: list[Replacement | None] = []
        for file, descriptor in zip(edited, opened, strict=True):
            prepared.append(file.prepare(descriptor, counted))
            if (replacement := prepared[-1]) is not None:
                stack.callback(replacement.discard)
        # Locks keep out edits, not those who publish another file of the name.
        if not _are_current(edited, opened):
            return False
        for i, file in enumerate(edited):
            try:
                file.finish(opened[i], prepared[i])
            except OSError as error:
                if i == 0:
                    raise
                raise _done_in_part(error, edited, i) from error
    return True


def _are_current(edited: Sequence[EditedFile], opened: Sequence[int]) -> bool:
    pairs = zip(edited, opened, strict=True)
    return all(file.original.is_current(descriptor) for file, descriptor in pairs)


def _done_in_part(error: OSError, edited: Sequence[EditedFile], failed: int) -> OSError:
    done = ", ".join(file.path.name for file in edited[:failed])
    left = "".join(f", {file.path.name}" for file in edited[failed + 1 :])
    return OSError(
        error.errno,
        f"{error.strerror or error}; {done} had been edited by then, this{left} not: "
        "ask for what is missing in another edit",
        os.fspath(edited[failed].path),
    )


def _result(first: Path, edited: Sequence[EditedFile], *, dry_run: bool) -> GGUFEdit:
    paths = tuple(os.fspath(file.path) for file in edited) or (os.fspath(first),)
    return GGUFEdit(
        path=paths[0],
        paths=paths,
        in_place=all(file.patch is not None for file in edited),
        changed=tuple(name for file in edited for name in file.edited.changed),
        nbytes=sum(file.nbytes_to_write for file in edited),
        dry_run=dry_run,
        leaves_links_behind=any(file.leaves_links_behind for file in edited),
    )
