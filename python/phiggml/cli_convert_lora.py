"""phiggml convert-lora."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

from phiggml.cli_terminal import ProgressBar, say_report, size
from phiggml.conversion.lora import LoraReport, convert_lora

__all__ = ["add_convert_lora"]


def add_convert_lora(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml convert-lora`."""
    add = parser.add_argument
    add(
        "source",
        metavar="ADAPTER",
        help="folder with adapter_config.json and adapter_model.safetensors, or a hub id",
    )
    add("-o", "--out", required=True, metavar="OUT.gguf", help="the file to write")
    add(
        "--base",
        metavar="FOLDER",
        help="folder with the base model's config.json, or its hub id (default: the folder that "
        "adapter_config.json names)",
    )
    add(
        "--type",
        type=str.upper,
        choices=("F32", "F16", "BF16"),
        default="F16",
        help="of the matrices (default %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace OUT.gguf if it exists")
    add("--dry-run", action="store_true", help="show what would be written, tensor by tensor")
    add("--json", action="store_true", help="report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    parser.set_defaults(verb=_convert_lora)


def _convert_lora(arguments: argparse.Namespace) -> int:
    with ProgressBar(quiet=arguments.quiet) as bar:
        report = convert_lora(
            arguments.source,
            arguments.out,
            arguments.type,
            base=arguments.base,
            progress=bar,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
        )
    return say_report(
        arguments, report, document=lambda: _document(report), summary=lambda: _summary(report)
    )


def _document(report: LoraReport) -> dict[str, Any]:
    return {
        "path": os.fspath(report.path),
        "architecture": report.lora.architecture,
        "type": report.plan.type,
        "alpha": report.lora.alpha,
        "nbytes": report.nbytes,
        "seconds": report.seconds,
        "written": report.written,
        "notes": list(report.lora.notes),
        "tensors": [dataclasses.asdict(tensor) for tensor in report.tensors],
    }


def _summary(report: LoraReport) -> str:
    return "\n".join(
        [
            *report.lora.notes,
            f"{os.fspath(report.path)}: LoRA of {len(report.tensors) // 2} tensors, "
            f"{report.plan.type}, {size(report.nbytes)}, {report.seconds:.1f} s",
        ]
    )
