"""phiggml gguf set, unset, rename, split, merge."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

import phiggml as pg
from phiggml.cli_terminal import ProgressBar, parse_size, say
from phiggml.gguf import GGUFMetadata, GGUFStrings, GGUFValue
from phiggml.gguf_value import encode_value

__all__ = ["add_verbs"]

_ASSIGNMENT_HELP = """
A key that is there keeps its type. The value of another is an integer, a number, true or false,
[1, 2, 3] or ["a", "b"] (JSON), or else text; KEY:TYPE=VALUE names the type, such as UINT64.
KEY=@FILE takes the value from a file as it stands there, for example a chat template;
a text that begins with @ is written @@.
"""
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
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
    values: dict[str, Any] = {}
    faults: list[str] = []
    with pg.GGUFFile(arguments.file) as file:
        for assignment in arguments.assignments:
            try:
                key, value = _assigned(assignment, file.metadata)
            except pg.InputError as error:
                faults.append(str(error))
                continue
            if key in values:
                faults.append(f"key {key!r}: it is set twice.")
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


def _assigned(assignment: str, metadata: GGUFMetadata) -> tuple[str, Any]:
    """A key and its value, of KEY=VALUE or KEY:TYPE=VALUE."""
    name, separator, text = assignment.partition("=")
    if not separator:
        raise pg.InputError(f"{assignment!r}: it is not of the form KEY=VALUE.")
    key, _, type = name.rpartition(":")
    if not key or name in metadata:
        key, type = name, ""
    what = f"key {key!r}"
    from_file = text.startswith("@") and not text.startswith("@@")
    if from_file:
        text = Path(text[1:]).read_bytes().decode("utf-8", "surrogateescape")
    text = text[1:] if text.startswith("@@") else text
    if type:
        is_array = type.upper() != "STRING" and text.startswith("[")
        return key, _parsed(text, GGUFValue("", type).type, is_array, what)
    if key in metadata:
        old = metadata.exact(key)
        return key, _parsed(text, old.type, _is_array(old.value), what)
    return key, text if from_file else _guessed(text, what)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | GGUFStrings)


def _parsed(text: str, type: str, is_array: bool, what: str) -> GGUFValue:
    """The value that the text means for a type."""
    kind = f"array of {type}" if is_array else type
    try:
        value = GGUFValue(_array(text) if is_array else _scalar(text, type), type)
        encode_value(value, what)
    except ValueError as error:
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
        raise pg.InputError(
            f"{what}: {shown!r} is no {kind}. Write KEY:TYPE=VALUE to give it another type."
        ) from error
    return value


def _scalar(text: str, type: str) -> bool | int | float | str:
    if type == "STRING":
        return text
    if type == "BOOL":
        return {"true": True, "false": False}.get(text.lower(), text)
    return float(text) if type.startswith("FLOAT") else int(text)


def _array(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, list):
        raise ValueError("no array")
    return value


def _guessed(text: str, what: str) -> Any:
    """The value that the text means where nothing says its type."""
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if not text.startswith("["):
        return text
    try:
        value = _array(text)
    except ValueError as error:
        raise pg.InputError(
            f"{what}: {text!r} is no JSON array. Write KEY:STRING=VALUE for a text."
        ) from error
    if not value:
        raise pg.InputError(f"{what}: an empty array has no type. Write KEY:TYPE=[].")
    return value
