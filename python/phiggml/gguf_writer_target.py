"""Where a writer's files go: their names, and what stands there already."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from phiggml.atomic_file import require_writable_name
from phiggml.errors import InputError

__all__ = ["WriterTarget", "file_names", "split_prefix"]

_SUFFIX = ".gguf"
_PART = re.compile(r"-[0-9]{5}-of-[0-9]{5}\Z")


def split_prefix(path: str | os.PathLike[str]) -> Path:
    """What the names of a split model begin with, its folder resolved.

    Args:
        path: PREFIX.gguf or PREFIX; the name of a part stands for its PREFIX.

    Raises:
        InputError: it is the name of a folder, or none.
    """
    text = os.fspath(path)
    name = _PART.sub("", _file_name(text).removesuffix(_SUFFIX))
    if not name:
        raise InputError(f"GGUFWriter: {text!r}: nothing stands before {_SUFFIX}. Pass a name.")
    return _resolved(Path(text).parent) / name


def file_names(path: str, count: int | None) -> tuple[str, ...]:
    """The names of a model's files.

    Args:
        path: the file, or PREFIX.gguf.
        count: of the files of a split model; None where it is not split.

    Raises:
        InputError: it is the name of a folder, or none.
    """
    if count is None:
        _file_name(path)
        return (path,)
    prefix = split_prefix(path).name
    return tuple(
        str(Path(path).parent / f"{prefix}-{i + 1:05d}-of-{count:05d}{_SUFFIX}")
        for i in range(count)
    )


class WriterTarget:
    """The file, or the files of a split model, that a writer makes.

    Args:
        path: the file, or PREFIX.gguf.
        split: whether there will be several.
        overwrite: whether they may replace others.

    Attributes:
        folder: where they will be.
        permissions: the bits of what they replace, or None.

    Raises:
        As GGUFWriter.
    """

    def __init__(self, path: str, *, split: bool, overwrite: bool) -> None:
        self._path = path
        self._split = split
        self._overwrite = overwrite
        _file_name(path)
        # A link is written through, as open() would; a split model's name is no file's.
        self._target = split_prefix(path) if split else _resolved(Path(path))
        self.folder = self._target.parent
        if split:
            old = self._require_new_set()
        else:
            require_writable_name(self._target, overwrite=overwrite)
            old = self._target
        self.permissions = _permissions(old) if overwrite else None

    def paths(self, count: int) -> tuple[str, ...]:
        """The names of so many files, as they were asked for."""
        return file_names(self._path, count if self._split else None)

    def targets(self, count: int) -> list[Path]:
        """The same files; the names stay right when the current folder changes."""
        if not self._split:
            return [self._target]
        return [self.folder / Path(name).name for name in self.paths(count)]

    def require_writable(self, count: int) -> None:
        """Checks that so many files may appear."""
        for target in self.targets(count):
            require_writable_name(target, overwrite=self._overwrite)

    def _require_new_set(self) -> Path | None:
        """Checks, before any work, that no file has a name that could be wanted.

        Returns:
            A file of the model that is split under this name already, if any.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        if Path(self._path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        part = re.compile(
            rf"{re.escape(self._target.name)}-[0-9]{{5}}(-of-[0-9]{{5}}{re.escape(_SUFFIX)})"
        )
        found = {}
        for entry in self.folder.iterdir():
            match = part.fullmatch(entry.name)
            if match is not None:
                found[entry] = entry.with_name(f"{self._target.name}-00001{match[1]}")
        if not found:
            return None
        if not self._overwrite:
            for entry in sorted(found):
                if found[entry] in found:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(entry))
            raise FileExistsError(
                errno.EEXIST,
                "A part of a split model whose first file is missing. Remove it, or overwrite",
                str(min(found)),
            )
        return min(found)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _file_name(text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"GGUFWriter: {text!r}: a path must be str or os.PathLike[str].")
    name = Path(text).name
    if "\0" in text:
        raise InputError(f"GGUFWriter: {text!r}: a path cannot hold NUL.")
    separators = (os.sep, os.altsep or os.sep)
    if name in ("", os.pardir) or text.endswith((*separators, os.sep + os.curdir)):
        raise InputError(f"GGUFWriter: {text!r}: it is no name of a file. Append one.")
    return name


def _permissions(old: Path | None) -> int | None:
    if old is None or not old.is_file():
        return None
    return stat.S_IMODE(old.stat().st_mode) & 0o777
