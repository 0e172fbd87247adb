"""phiggml plan: which tensor would go where, and what each device needs."""

from __future__ import annotations

import argparse

import phiggml as pg
from phiggml.cli_session import (
    add_cache_arguments,
    add_placement_arguments,
    placement_of,
    session_settings,
)
from phiggml.cli_terminal import say, say_json

__all__ = ["add_plan"]


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml plan`."""
    add = parser.add_argument
    add("model", metavar="MODEL.gguf", help="a GGUF model, or any part of a split one")
    add_placement_arguments(parser)
    add_cache_arguments(parser)
    add(
        "--n-seq-max",
        type=int,
        default=pg.SessionSettings().n_seq_max,
        metavar="N",
        help="sequences in a context (default %(default)s)",
    )
    add("--json", action="store_true", help="bytes and each tensor's device, as JSON")
    parser.set_defaults(verb=_plan)
    parser.epilog = "A plan that does not fit ends with 0, too: its last lines say what to change."


def _plan(arguments: argparse.Namespace) -> int:
    plan = pg.plan_placement(
        arguments.model,
        **placement_of(arguments),
        session=session_settings(arguments, n_seq_max=arguments.n_seq_max),
    )
    if arguments.json:
        say_json(plan.document())
    else:
        say(str(plan))
    return 0
