"""phiggml convert and phiggml quantize."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import phiggml as pg
from phiggml.cli_recipe_arguments import add_type_options, chosen_options, chosen_overrides
from phiggml.cli_terminal import ProgressBar, parse_size, say_report, size, table
from phiggml.gguf_text import escaped, one_line

__all__ = ["add_convert", "add_quantize", "types_table"]

_TYPE_HELP = "type of the whole model, such as Q4_K_M; an unknown name lists them all"


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml convert`."""
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="folder with config.json, safetensors, tokenizer; or an id of the Hugging Face hub: "
        "owner/name, owner/name@revision",
    )
    default = inspect.signature(pg.convert).parameters["type"].default
    _add_type_arguments(parser, default=default)
    add_type_options(parser, requantize=False)
    _add_job_arguments(parser)
    # The shards of a checkpoint are no parts to keep.
    parser.set_defaults(verb=_convert, keep_split=False)


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml quantize`."""
    parser.add_argument(
        "source", metavar="IN.gguf", help="a GGUF model, or the first part of a split one"
    )
    _add_type_arguments(parser, default=None)
    add_type_options(parser)
    _add_job_arguments(parser).add_argument(
        "--keep-split", action="store_true", help="write as many parts as the source has"
    )
    parser.set_defaults(verb=_quantize)


def _add_type_arguments(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """--type or --recipe: one of them where there is no default."""
    choice = parser.add_mutually_exclusive_group(required=default is None)
    # No default of argparse's: it takes a type given that is the default for none given.
    choice.add_argument(
        "--type", help=_TYPE_HELP if default is None else f"{_TYPE_HELP} (default {default})"
    )
    choice.add_argument(
        "--recipe",
        metavar="FILE",
        help="a recipe that `phiggml recipe show --save` wrote, in place of a type",
    )
    parser.set_defaults(default_type=default)


def _add_job_arguments(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """All that both verbs take; gives the group of what decides where parts begin."""
    add = parser.add_argument
    add("-o", "--out", required=True, metavar="OUT.gguf", help="the file to write")
    add("--imatrix", metavar="FILE", help="importances, as llama-imatrix writes them")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--split-max-size",
        type=parse_size,
        metavar="SIZE",
        help="begin a new part when one would grow beyond this, such as 2G",
    )
    add(
        "--max-memory",
        type=parse_size,
        metavar="SIZE",
        help="of tensor data in memory at a time, such as 500M",
    )
    add("--measure-error", action="store_true", help="report what each tensor loses, as its nrmse")
    add("--threads", type=int, metavar="N", help="default: all cores")
    add("--overwrite", action="store_true", help="replace OUT.gguf if it exists")
    add("--dry-run", action="store_true", help="show what would be written, tensor by tensor")
    add("--json", action="store_true", help="report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    return parts


def _convert(arguments: argparse.Namespace) -> int:
    return _write(pg.convert, arguments)


def _quantize(arguments: argparse.Namespace) -> int:
    if Path(arguments.source).is_dir():
        raise pg.FormatError(
            f"quantize: {Path(arguments.source)}: is a folder. Name a GGUF file; what turns a "
            "checkpoint into one is `phiggml convert`.",
            path=arguments.source,
        )
    return _write(pg.quantize_model, arguments)


def _write(verb: Callable[..., pg.Report], arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        report = verb(
            arguments.source,
            arguments.out,
            _type(arguments),
            imatrix=arguments.imatrix,
            overrides=chosen_overrides(arguments),
            options=_options(arguments),
            threads=arguments.threads,
            progress=bar,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
        )
    return say_report(arguments, report, document=report.document, summary=lambda: _summary(report))


def _type(arguments: argparse.Namespace) -> str | pg.Recipe:
    if arguments.recipe is not None:
        out = Path(arguments.out)
        if out.exists() and out.samefile(arguments.recipe):
            raise pg.InputError(
                f"write: {arguments.out}: it is the recipe itself. Write to another file."
            )
        return pg.Recipe.load(arguments.recipe)
    type: str = arguments.default_type if arguments.type is None else arguments.type
    return type


def _options(arguments: argparse.Namespace) -> pg.QuantizeOptions:
    return dataclasses.replace(
        chosen_options(arguments),
        max_memory=arguments.max_memory,
        keep_split=arguments.keep_split,
        split_max_bytes=arguments.split_max_size,
        measure_error=arguments.measure_error,
    )


def types_table(report: pg.Report) -> str:
    """How much of a model is of which type."""
    rows = [
        (share.type, str(share.tensors), size(share.nbytes), f"{share.share:.1%}")
        for share in report.types
    ]
    return table(("type", "tensors", "size", "share"), rows, right=(1, 2, 3))


def _summary(report: pg.Report) -> str:
    exceptions = [
        f"{one_line(tensor.name)}: {tensor.type}, {tensor.note}."
        for tensor in report.tensors
        if tensor.note
    ]
    files = f" in {len(report.paths)} files" if len(report.paths) > 1 else ""
    return "\n".join(
        [
            types_table(report),
            *exceptions,
            *map(_sentence, report.notes),
            *(f"warning: {_sentence(text)}" for text in report.warnings),
            *report.measured,
            f"{escaped(os.fspath(report.path))}: {report.plan.type}, {size(report.nbytes)}{files}, "
            f"{report.bits_per_weight:.2f} bits per weight, {report.seconds:.1f} s",
        ]
    )


def _sentence(text: str) -> str:
    """One line, that a full stop ends where nothing else does."""
    return escaped(text) if text.endswith((".", "?")) else f"{escaped(text)}."
