"""phiggml convert and phiggml quantize."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Any

import phiggml as pg
from phiggml.cli_terminal import ProgressBar, say_report, size, table
from phiggml.conversion import ConversionReport

__all__ = ["add_convert", "add_quantize"]

_TYPE_HELP = "type of the whole model, such as Q4_K_M; an unknown name lists them all"


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml convert`."""
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="folder with config.json, safetensors, tokenizer; or an id of the Hugging Face hub: "
        "owner/name, owner/name@revision",
    )
    parser.add_argument(
        "--type",
        default=inspect.signature(pg.convert).parameters["type"].default,
        help=f"{_TYPE_HELP} (default %(default)s)",
    )
    _add_job_arguments(parser)
    parser.set_defaults(verb=_convert, allow_requantize=False)


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml quantize`."""
    parser.add_argument(
        "source", metavar="IN.gguf", help="a GGUF model, or the first part of a split one"
    )
    parser.add_argument("--type", required=True, help=_TYPE_HELP)
    _add_job_arguments(parser)
    parser.add_argument(
        "--allow-requantize",
        action="store_true",
        help="take quantized tensors as a source too (this loses quality)",
    )
    parser.set_defaults(verb=_quantize)


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--out", required=True, metavar="OUT.gguf", help="the file to write")
    add(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="REGEX=TYPE",
        help="type of the tensors in whose name the expression is found; may be given again",
    )
    add("--pure", action="store_true", help="one type for all tensors, no mixture")
    add("--leave-output", action="store_true", help="leave output.weight as it is")
    add("--output-type", metavar="TYPE", help="type of output.weight")
    add("--embedding-type", metavar="TYPE", help="type of token_embd.weight")
    add("--threads", type=int, metavar="N", help="default: all cores")
    add("--overwrite", action="store_true", help="replace OUT.gguf if it exists")
    add("--dry-run", action="store_true", help="show what would be written, tensor by tensor")
    add("--json", action="store_true", help="report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _override(text: str) -> tuple[str, str]:
    expression, separator, type = text.rpartition("=")
    if not separator or not expression or not type:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REGEX=TYPE")
    return expression, type


def _convert(arguments: argparse.Namespace) -> int:
    return _write(pg.convert, arguments)


def _quantize(arguments: argparse.Namespace) -> int:
    return _write(pg.quantize_model, arguments)


def _write(verb: Callable[..., pg.Report], arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        report = verb(
            arguments.source,
            arguments.out,
            arguments.type,
            overrides=dict(arguments.override),
            options=_options(arguments),
            threads=arguments.threads,
            progress=bar,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
        )
    return _tell(report, arguments)


def _options(arguments: argparse.Namespace) -> pg.QuantizeOptions:
    return pg.QuantizeOptions(
        pure=arguments.pure,
        allow_requantize=arguments.allow_requantize,
        quantize_output=not arguments.leave_output,
        output_type=arguments.output_type,
        embedding_type=arguments.embedding_type,
    )


def _tell(report: pg.Report, arguments: argparse.Namespace) -> int:
    return say_report(
        arguments, report, document=lambda: _document(report), summary=lambda: _summary(report)
    )


def _document(report: pg.Report) -> dict[str, Any]:
    return {
        "path": os.fspath(report.path),
        "type": report.plan.type,
        "nbytes": report.nbytes,
        "bits_per_weight": report.bits_per_weight,
        "seconds": report.seconds,
        "written": report.written,
        "notes": [*_conversion_notes(report), *report.plan.notes],
        "tensors": [dataclasses.asdict(tensor) for tensor in report.tensors],
    }


def _conversion_notes(report: pg.Report) -> tuple[str, ...]:
    """What a conversion left out; nothing for a file that was only quantized."""
    return report.conversion.notes if isinstance(report, ConversionReport) else ()


def _summary(report: pg.Report) -> str:
    by_type: dict[str, list[int]] = {}
    for tensor in report.tensors:
        by_type.setdefault(tensor.type, []).append(tensor.nbytes)
    rows = [
        (type, str(len(sizes)), size(sum(sizes)), f"{sum(sizes) / report.plan.nbytes:.1%}")
        for type, sizes in sorted(by_type.items(), key=lambda item: -sum(item[1]))
    ]
    exceptions = [
        f"{tensor.name}: {tensor.type}, {tensor.note}." for tensor in report.tensors if tensor.note
    ]
    return "\n".join(
        [
            table(("type", "tensors", "size", "share"), rows, right=(1, 2, 3)),
            *exceptions,
            *_conversion_notes(report),
            *(f"{text}." for text in report.plan.notes),
            f"{os.fspath(report.path)}: {report.plan.type}, {size(report.nbytes)}, "
            f"{report.bits_per_weight:.2f} bits per weight, {report.seconds:.1f} s",
        ]
    )
