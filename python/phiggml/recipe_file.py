"""A recipe's file: JSON, read strictly, written so that people can edit and compare it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phiggml.atomic_file import AtomicFile, naming_target, require_writable_name
from phiggml.errors import FormatError, InputError
from phiggml.recipe_fields import FIELDS, checked_fields
from phiggml.recipe_type import short

__all__ = ["read_recipe", "recipe_document", "write_recipe"]

_VERSION_KEY, _VERSION = "phiggml_recipe", 1
# One of the tensors of the largest models is about a megabyte.
_MOST_BYTES = 16 << 20
_MOST_FAULTS = 20


def read_recipe(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of a recipe, checked.

    Raises:
        FormatError: it is no recipe; all faults are named together.
        InputError: the path cannot be one.
        OSError: it cannot be read.
    """
    path = _checked_path(name)
    faults: list[str] = []
    document = _parsed(_bytes_of(path), path)
    checked, wrong = checked_fields(dict(_fields(document, faults)))
    faults += wrong
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more."] if len(faults) > _MOST_FAULTS else []
        raise _fault(path, " ".join([*faults[:_MOST_FAULTS], *more]))
    return checked


def write_recipe(
    path: str | os.PathLike[str], document: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Writes what recipe_document made; the file appears when it is complete."""
    # A link is written through, as open() would.
    path = Path(os.path.realpath(_checked_path(path)))
    require_writable_name(path, overwrite=overwrite)
    with naming_target(str(path)):
        file = AtomicFile(path.parent, permissions=_permissions(path))
        try:
            file.write(_text(document).encode())
            file.publish(path, overwrite=overwrite)
        finally:
            file.discard()


def _checked_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise InputError(f"recipe: {path!r}: a path is text without NUL, or os.PathLike.")
    return Path(path)


def _permissions(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def recipe_document(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe as a file has them, in values of JSON."""
    document: dict[str, Any] = {_VERSION_KEY: _VERSION}
    for name in FIELDS:
        if name in fields:
            value = fields[name]
            pairs = [list(pair) for pair in value.items()] if isinstance(value, Mapping) else []
            forms = {"overrides": pairs, "tensors": dict(pairs)}
            document[name] = forms.get(name, value)
    return document


def _text(document: Mapping[str, Any]) -> str:
    """The document with one override or tensor a line."""
    lines = []
    for name, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = _lines("[]", [json.dumps(pair) for pair in value])
        elif isinstance(value, Mapping):
            text = _lines("{}", [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()])
        lines.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(brackets: str, items: Sequence[str]) -> str:
    """A JSON array or object with one item a line."""
    return f"{brackets[0]}\n" + ",\n".join(f"    {item}" for item in items) + f"\n  {brackets[1]}"


def _bytes_of(path: Path) -> bytes:
    # A pipe or a device could block, or never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise _fault(path, "it is no regular file.")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _fault(path, f"it holds more than {_MOST_BYTES} bytes.")
    return data


class _Members(list[tuple[str, Any]]):
    """A JSON object's names and values, as often as they occur."""


def _parsed(data: bytes, path: Path) -> _Members:
    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_Members, parse_constant=_refused)
    except UnicodeDecodeError as error:
        raise _fault(path, f"it is not UTF-8 ({error.reason}).", offset=error.start) from None
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise _fault(path, f"it is not valid JSON ({error.msg}).", offset=offset) from None
    except RecursionError:
        raise _fault(path, "it is not valid JSON (nested too deep).") from None
    except ValueError as error:
        raise _fault(path, f"it is not valid JSON ({error}).") from None
    if not isinstance(document, _Members):
        raise _fault(path, "it must be one JSON object.")
    return document


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _fault(path: Path, faults: str, *, offset: int | None = None) -> FormatError:
    return FormatError(
        f"recipe: {path}: {faults} `phiggml recipe show MODEL --save FILE` writes one.",
        path=str(path),
        offset=offset,
    )


def _fields(document: _Members, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """The members that a recipe has, without the file's own form."""
    members = _once(document, "member", faults)
    version = members.pop(_VERSION_KEY, None)
    if type(version) is not int or version != _VERSION:
        faults.append(f"{_VERSION_KEY}: it must be {_VERSION}, not {short(version)}.")
    if "type" not in members:
        faults.append("type: it is missing.")
    for name, value in members.items():
        if name not in FIELDS:
            faults.append(f"{short(name)} is no member of a recipe.")
        elif name == "overrides":
            yield name, _once(_pairs(value, faults), "override", faults)
        elif name == "tensors" and isinstance(value, _Members):
            yield name, _once(value, "tensor", faults)
        else:
            yield name, value


def _pairs(value: object, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Overrides are an array, as their order matters."""
    if not isinstance(value, list) or isinstance(value, _Members):
        faults.append("overrides: it must be an array of pairs [EXPRESSION, TYPE].")
        return
    for pair in value:
        if (
            isinstance(pair, list)
            and not isinstance(pair, _Members)
            and len(pair) == 2
            and isinstance(pair[0], str)
        ):
            yield pair[0], pair[1]
        else:
            faults.append(f"overrides: {short(pair)} is no pair [EXPRESSION, TYPE].")


def _once(pairs: Iterable[tuple[str, Any]], what: str, faults: list[str]) -> dict[str, Any]:
    """The values by name; each may occur once."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            faults.append(f"{what} {short(name)}: it occurs more than once.")
        values[name] = value
    return values
