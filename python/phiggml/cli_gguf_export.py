"""phiggml gguf export."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

import phiggml as pg
from phiggml.cli_terminal import ProgressBar, parse_size, say_report, size, table

__all__ = ["add_verbs"]

_MEANING = "turn a GGUF model into a checkpoint of Hugging Face, dequantized"


def add_verbs(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declares export."""
    parser = verbs.add_parser(
        "export",
        help=_MEANING,
        description=f"{_MEANING[0].upper()}{_MEANING[1:]}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="MODEL.gguf", help="a GGUF model, or any part of a split one")
    add("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    add(
        "--dtype",
        type=str.upper,
        choices=("BF16", "F16", "F32"),
        help="of the weights (default BF16, unless all of them are F32 or F16)",
    )
    add(
        "--max-shard-size",
        type=parse_size,
        default="5G",
        metavar="SIZE",
        help="of a file of weights: bytes, or such as 500M or 5G (default %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="default: all cores")
    add("--overwrite", action="store_true", help="replace the checkpoint that is in DIR")
    add("--dry-run", action="store_true", help="show what would be written, tensor by tensor")
    add("--json", action="store_true", help="report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    parser.set_defaults(verb=_export)


def _export(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        report = pg.export_checkpoint(
            arguments.source,
            arguments.out,
            dtype=arguments.dtype,
            max_shard_bytes=arguments.max_shard_size,
            threads=arguments.threads,
            progress=bar,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
        )
    return say_report(
        arguments, report, document=lambda: _document(report), summary=lambda: _summary(report)
    )


def _document(report: pg.ExportReport) -> dict[str, Any]:
    return {
        "path": os.fspath(report.path),
        "architecture": report.plan.architecture,
        "dtype": report.plan.dtype,
        "nbytes": report.nbytes,
        "seconds": report.seconds,
        "written": report.written,
        "files": report.files,
        "notes": list(report.notes),
        "tensors": [
            {**dataclasses.asdict(tensor), "nbytes": tensor.nbytes} for tensor in report.tensors
        ],
    }


def _summary(report: pg.ExportReport) -> str:
    shards = report.plan.shards
    rows = [
        (name, str(len(shards[name])) if name in shards else "", size(nbytes))
        for name, nbytes in report.files.items()
    ]
    return "\n".join(
        [
            table(("file", "tensors", "size"), rows, right=(1, 2)),
            *report.notes,
            f"{os.fspath(report.path)}: {report.plan.architecture}, {report.plan.dtype}, "
            f"{size(report.nbytes)}, {report.seconds:.1f} s",
        ]
    )
