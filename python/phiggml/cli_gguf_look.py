"""phiggml gguf diff, hash, verify, extract."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import phiggml as pg
from phiggml.cli_inspect import json_value, tensor_named
from phiggml.cli_terminal import ProgressBar, say, say_json
from phiggml.gguf_hash import HASH_ALGORITHMS
from phiggml.gguf_manifest import check_manifest, manifest_algorithm, read_manifest
from phiggml.gguf_text import one_line, shown_shape

__all__ = ["add_verbs"]

_FILE_HELP = "a file, or any part of a split model"


def add_verbs(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declares diff, hash, verify, extract."""
    _add_diff(_verb(verbs, "diff", "compare two files; exit code 1 if they differ"))
    _add_hash(_verb(verbs, "hash", "hash tensors, all data and metadata, or check saved hashes"))
    _add_verify(_verb(verbs, "verify", "look for all faults of a file; exit code 1 if any"))
    _add_extract(_verb(verbs, "extract", "write a tensor as numpy's .npy"))


def _verb(
    verbs: argparse._SubParsersAction[Any], name: str, meaning: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.", allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    return parser


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.gguf", help=_FILE_HELP)
    parser.add_argument("b", metavar="B.gguf", help=_FILE_HELP)
    parser.add_argument("--metadata-only", action="store_true", help="compare no tensors")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.set_defaults(verb=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        found = pg.diff_gguf(
            arguments.a,
            arguments.b,
            tensors=not arguments.metadata_only,
            threads=arguments.threads,
            progress=bar,
        )
    if arguments.json:
        say_json(_diff_document(found))
    else:
        say(str(found))
    return 0 if found.same else 1


def _diff_document(found: pg.GGUFDiff) -> dict[str, Any]:
    def fields(change: Any) -> dict[str, Any]:
        return {field.name: getattr(change, field.name) for field in dataclasses.fields(change)}

    tensors = [
        {**fields(change), "error": None if change.error is None else fields(change.error)}
        for change in found.tensors_changed
    ]
    changed = {
        "metadata_changed": [fields(change) for change in found.metadata_changed],
        "tensors_changed": tensors,
    }
    document: dict[str, Any] = json_value({"same": found.same, **fields(found), **changed})
    return document


def _add_hash(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gguf", help=_FILE_HELP)
    parser.add_argument(
        "--algorithm",
        choices=HASH_ALGORITHMS,
        help=f"default {HASH_ALGORITHMS[0]}, or the best that the manifest has",
    )
    parser.add_argument(
        "--check", metavar="MANIFEST", help="compare with saved output; exit code 1 if it differs"
    )
    parser.set_defaults(verb=_hash)


def _hash(arguments: argparse.Namespace) -> int:
    entries = None
    algorithm = arguments.algorithm
    if arguments.check is not None:
        entries = read_manifest(arguments.check, arguments.file)
        algorithm = algorithm or manifest_algorithm(entries, arguments.check, arguments.file)
    with ProgressBar(quiet=arguments.quiet) as bar:
        found = pg.hash_gguf(
            arguments.file,
            algorithm=algorithm or HASH_ALGORITHMS[0],
            threads=arguments.threads,
            progress=bar,
        )
    if entries is None:
        say(str(found))
        return 0
    findings = check_manifest(found, entries)
    for finding in findings:
        say(f"{found.algorithm:<8}  {finding.digest}  {finding.what}  -  {finding.verdict}")
    n_bad = sum(finding.verdict != "Ok" for finding in findings)
    say(f"{one_line(arguments.check)}: {n_bad} of {len(findings)} differ")
    return 1 if n_bad else 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gguf", help=_FILE_HELP)
    parser.add_argument("--no-data", action="store_true", help="do not look at the numbers")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.set_defaults(verb=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        found = pg.verify_gguf(
            arguments.file,
            data=not arguments.no_data,
            threads=arguments.threads,
            progress=bar,
        )
    if arguments.json:
        say_json(_verify_document(found))
    else:
        say(str(found))
    return 0 if found.ok else 1


def _verify_document(found: pg.GGUFVerification) -> dict[str, Any]:
    return {
        "path": found.path,
        "paths": list(found.paths),
        "ok": found.ok,
        "n_tensors": found.n_tensors,
        "nbytes": found.nbytes,
        "data": found.data,
        "faults": [dataclasses.asdict(fault) for fault in found.faults],
    }


def _add_extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gguf", help=_FILE_HELP)
    parser.add_argument("tensor", metavar="TENSOR", help="its name")
    parser.add_argument("-o", "--out", required=True, metavar="X.npy", help="the file to write")
    parser.add_argument("--raw", action="store_true", help="the bytes as they are, as uint8")
    parser.add_argument("--overwrite", action="store_true", help="replace X.npy if it exists")
    parser.set_defaults(verb=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    with pg.GGUFFile(arguments.file) as file, ProgressBar(quiet=arguments.quiet) as bar:
        tensor = tensor_named(file, arguments.tensor, "extract")
        written = pg.extract_tensor(
            tensor,
            arguments.out,
            raw=arguments.raw,
            overwrite=arguments.overwrite,
            threads=arguments.threads,
            progress=bar,
        )
    if not arguments.quiet:
        say(f"{one_line(arguments.out)}: {written}, {shown_shape(tensor.shape)}")
    return 0
