"""The arguments that choose which tensor gets which type."""

from __future__ import annotations

import argparse

import phiggml as pg

__all__ = ["add_type_options", "chosen_options", "chosen_overrides"]


def add_type_options(parser: argparse.ArgumentParser, *, requantize: bool = True) -> None:
    """Declares overrides and options of types, and whether a quantized source is one."""
    add = parser.add_argument
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
    if requantize:
        add(
            "--allow-requantize",
            action="store_true",
            help="take quantized tensors as a source too (this loses quality)",
        )
    else:
        parser.set_defaults(allow_requantize=False)


def chosen_overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """The overrides in their order; of an expression that was given twice, the first one."""
    overrides: dict[str, str] = {}
    for expression, type in arguments.override:
        overrides.setdefault(expression, type)
    return overrides


def chosen_options(arguments: argparse.Namespace) -> pg.QuantizeOptions:
    """What add_type_options was given."""
    return pg.QuantizeOptions(
        pure=arguments.pure,
        allow_requantize=arguments.allow_requantize,
        quantize_output=not arguments.leave_output,
        output_type=arguments.output_type,
        embedding_type=arguments.embedding_type,
    )


def _override(text: str) -> tuple[str, str]:
    expression, separator, type = text.rpartition("=")
    if not separator or not expression or not type:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REGEX=TYPE")
    return expression, type
