"""phiggml gguf set, unset, rename, split, merge."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

import phiggml as pg
from phiggml.cli_terminal import ProgressBar, parse_size, say
from phiggml.gguf import GGUFMetadata, GGUFStrings, GGUFValue
from phiggml.gguf_edit import require_local_path
from phiggml.gguf_value import encode_value

__all__ = ["add_verbs"]

_ASSIGNMENT_HELP = """
A key that is there keeps its type. The value of another is an integer (0x10 too), a number, true
or false, [1, 2, 3] or ["a", "b"] (JSON), or else text; KEY:TYPE=VALUE names the type, such as
UINT64, and KEY:TYPE[]=[...] an array of it. KEY=@FILE takes the value from a file as it stands
there, for example a chat template; a text that begins with @ is written @@.
"""
_INTEGER = re.compile(r"[+-]?(\d+|0x[0-9a-f]+)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_LONGEST_INTEGER = 30  # characters, of 64 bits with some zeros before them
_MOST_SHOWN = 60


def add_verbs(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declares set, unset, rename, split, merge."""
    _add_edits(verbs)
    split = _add_verb(verbs, "split", "write a model as several files", _split)
    split.add_argument("source", metavar="FILE")
    split.add_argument(
        "-o", "--out", required=True, metavar="PREFIX.gguf", help="names PREFIX-00001-of-...gguf"
    )
    limit = split.add_mutually_exclusive_group(required=True)
    limit.add_argument(
        "--max-size", type=parse_size, metavar="SIZE", help="bytes of tensors in a file: 500M, 2G"
    )
    limit.add_argument("--max-tensors", type=int, metavar="N", help="tensors in a file")
    merge = _add_verb(verbs, "merge", "write a split model as one file", _merge)
    merge.add_argument("source", metavar="PART", help="any part of it")
    merge.add_argument("-o", "--out", required=True, metavar="OUT.gguf", help="the file to write")
    for verb in (split, merge):
        verb.add_argument("--overwrite", action="store_true", help="replace what exists")
        verb.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _add_edits(verbs: argparse._SubParsersAction[Any]) -> None:
    change = _add_verb(verbs, "set", "change or add metadata", _set, epilog=_ASSIGNMENT_HELP)
    unset = _add_verb(verbs, "unset", "remove metadata", _unset)
    rename = _add_verb(verbs, "rename", "rename a metadata key, or a tensor", _rename)
    for verb in (change, unset, rename):
        verb.add_argument("file", metavar="FILE", help="of a split model, any part")
    change.add_argument("assignments", nargs="+", metavar="KEY=VALUE")
    unset.add_argument("keys", nargs="+", metavar="KEY")
    rename.add_argument("old", metavar="OLD")
    rename.add_argument("new", metavar="NEW")
    rename.add_argument("--tensor", action="store_true", help="OLD and NEW are names of tensors")
    for verb in (change, unset, rename):
        verb.add_argument("--dry-run", action="store_true", help="only say what would be done")
        verb.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _add_verb(
    verbs: argparse._SubParsersAction[Any],
    name: str,
    meaning: str,
    run: Any,
    *,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=meaning,
        description=f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=epilog,
        allow_abbrev=False,
    )
    verb.set_defaults(verb=run)
    return verb


def _set(arguments: argparse.Namespace) -> int:
    values: dict[str, GGUFValue | list[Any]] = {}
    faults: list[str] = []
    require_local_path(arguments.file)
    with pg.GGUFFile(arguments.file) as file:
        for assignment in arguments.assignments:
            try:
                key, value = _assigned(assignment, file.metadata)
            except pg.InputError as error:
                faults.append(str(error))
                continue
            if key in values:
                faults.append(f"key {_shown(key)}: it is set twice.")
            values[key] = value
    if faults:
        raise pg.InputError(f"gguf set: {' '.join(faults)}")
    return _edit(arguments, set=values)


def _unset(arguments: argparse.Namespace) -> int:
    return _edit(arguments, unset=arguments.keys)


def _rename(arguments: argparse.Namespace) -> int:
    names = {arguments.old: arguments.new}
    return _edit(arguments, **{"rename_tensors" if arguments.tensor else "rename": names})


def _edit(arguments: argparse.Namespace, **changes: Any) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        edit = pg.edit_gguf(arguments.file, **changes, dry_run=arguments.dry_run, progress=bar)
    if arguments.dry_run or not arguments.quiet:
        say(str(edit))
    return 0


def _split(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        parts = pg.split_gguf(
            arguments.source,
            arguments.out,
            max_bytes=arguments.max_size,
            max_tensors=arguments.max_tensors,
            overwrite=arguments.overwrite,
            progress=bar,
        )
    if not arguments.quiet:
        say("\n".join(map(str, parts)))
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        path = pg.merge_gguf(
            arguments.source, arguments.out, overwrite=arguments.overwrite, progress=bar
        )
    if not arguments.quiet:
        say(str(path))
    return 0


def _assigned(assignment: str, metadata: GGUFMetadata) -> tuple[str, GGUFValue | list[Any]]:
    """A key and its value, of KEY=VALUE, KEY:TYPE=VALUE or KEY:TYPE[]=[...]."""
    name, separator, text = assignment.partition("=")
    if not separator:
        raise pg.InputError(f"{_shown(assignment)}: it is not of the form KEY=VALUE.")
    key, _, type = name.rpartition(":")
    names_type = bool(key) and name not in metadata
    key = key if names_type else name
    what = f"key {_shown(key)}"
    from_file = text.startswith("@") and not text.startswith("@@")
    if from_file:
        text = Path(text[1:]).read_bytes().decode("utf-8", "surrogateescape")
    text = text[1:] if text.startswith("@@") else text
    if names_type:
        is_array = type.endswith("[]")
        type = _checked_type(type.removesuffix("[]"), what)
        return key, _parsed(text, type, is_array or _is_json_array(text, type), what)
    if key in metadata:
        old = metadata.exact(key)
        return key, _parsed(text, old.type, _is_array(old.value), what)
    return key, GGUFValue(text, "STRING") if from_file else _guessed(text, what)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def _checked_type(type: str, what: str) -> str:
    try:
        return GGUFValue("", type).type
    except pg.InputError as error:
        raise pg.InputError(f"{what}: {str(error).removeprefix('GGUFValue: ')}") from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | GGUFStrings)


def _is_json_array(text: str, type: str) -> bool:
    return type != "STRING" and text.startswith("[")


def _parsed(text: str, type: str, is_array: bool, what: str) -> GGUFValue:
    """The value that the text means for a type."""
    kind = f"array of {type}" if is_array else type
    try:
        value = GGUFValue(_array(text, type) if is_array else _scalar(text, type), type)
        encode_value(value, what)
    except ValueError as error:
        raise pg.InputError(
            f"{what}: {_shown(text)} is no {kind}. "
            "Write KEY:TYPE=VALUE or KEY:TYPE[]=[...] to give it another type."
        ) from error
    return value


def _scalar(text: str, type: str) -> bool | int | float | str:
    if type == "STRING":
        return text
    # Files end in a newline.
    text = text.rstrip("\r\n")
    if type == "BOOL":
        return {"true": True, "false": False}.get(text.lower(), text)
    return _float(text) if type.startswith("FLOAT") else _integer(text)


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text) or len(text) > _LONGEST_INTEGER:
        raise ValueError("no integer")
    value = int(text, 16 if "x" in text.lower() else 10)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError("too large for 64 bits")
    return value


def _float(text: str) -> float:
    if _NO_NUMBER.fullmatch(text):
        return float(text)
    if not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    return _finite(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("too large for 64 bits")
    return value


def _array(text: str, type: str | None) -> list[Any]:
    """A JSON array; NaN and Infinity, which JSON has not, only where the type has them."""
    is_float = type is not None and type.startswith("FLOAT")

    def constant(name: str) -> float:
        if not is_float:
            raise ValueError("no number")
        return float(name)

    parse_int = _finite if is_float else _integer
    try:
        value = json.loads(text, parse_float=_finite, parse_int=parse_int, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, list):
        raise ValueError("no array")
    return value


def _guessed(text: str, what: str) -> GGUFValue | list[Any]:
    """The value that the text means where nothing says its type."""
    if text.lower() in ("true", "false"):
        return GGUFValue(text.lower() == "true", "BOOL")
    if text.startswith("["):
        return _guessed_array(text, what)
    if _INTEGER.fullmatch(text):
        return _guessed_number(text, ("UINT32", "INT32", "UINT64", "INT64"), what)
    if _NUMBER.fullmatch(text):
        return _guessed_number(text, ("FLOAT32",), what)
    return GGUFValue(text, "STRING")


def _guessed_number(text: str, types: tuple[str, ...], what: str) -> GGUFValue:
    """The first type that holds it."""
    for type in types:
        try:
            return _parsed(text, type, False, what)
        except pg.InputError:
            continue
    wider = "FLOAT64" if types == ("FLOAT32",) else "STRING"
    raise pg.InputError(
        f"{what}: {_shown(text)} is too large for {types[-1]}. Write KEY:{wider}=VALUE, or "
        "KEY:TYPE=VALUE for another type."
    )


def _guessed_array(text: str, what: str) -> list[Any]:
    try:
        elements = _array(text, None)
    except ValueError as error:
        raise pg.InputError(
            f"{what}: {_shown(text)} is no JSON array. Write KEY:STRING=VALUE for a text."
        ) from error
    if not elements:
        raise pg.InputError(f"{what}: an empty array has no type. Write KEY:TYPE[]=[].")
    try:
        encode_value(elements, what)
    except pg.InputError as error:
        raise pg.InputError(
            f"{what}: {_shown(text)} is no array of one type: BOOL, INT32, FLOAT32 or STRING. "
            "Write KEY:TYPE[]=[...] for another type."
        ) from error
    return elements
