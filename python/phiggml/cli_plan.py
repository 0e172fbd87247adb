"""phiggml plan: which tensor would go where, and what each device needs."""

from __future__ import annotations

import argparse

import phiggml as pg
from phiggml.cli_run import layers_on_gpus
from phiggml.cli_terminal import say, say_json
from phiggml.placement_settings import DEFAULT_CONTEXT

__all__ = ["add_plan"]

_DEFAULT = pg.SessionSettings()


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml plan`."""
    add = parser.add_argument
    add("model", metavar="MODEL.gguf", help="a GGUF model, or any part of a split one")
    add(
        "--n-gpu-layers",
        type=layers_on_gpus,
        default="auto",
        metavar="N",
        help="layers to hold on GPUs: a number, all, or auto: as many as fit (default %(default)s)",
    )
    add("--device", action="append", metavar="NAME", help="use this device; default: all GPUs")
    add(
        "--memory",
        action="append",
        type=_memory,
        default=[],
        metavar="NAME=SIZE",
        help="what may be taken of a device, such as Vulkan0=8GiB; default: what is free there, "
        "but for 1 GiB or an eighth of it",
    )
    add(
        "--tensor-override",
        action="append",
        type=_override,
        default=[],
        metavar="REGEX=NAME",
        help="put tensors on a device: ffn_.*_exps=CPU keeps experts on the CPU",
    )
    add(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of context (default: the model's own, at most {DEFAULT_CONTEXT})",
    )
    add("--n-batch", type=int, metavar="N", help="tokens evaluated at once (default %(default)s)")
    add("--n-seq-max", type=int, metavar="N", help="sequences in a context (default %(default)s)")
    add("--type-k", metavar="TYPE", help="type of the K cache (default %(default)s)")
    add("--type-v", metavar="TYPE", help="type of the V cache (default %(default)s)")
    add("--no-offload-kv", action="store_true", help="the whole KV cache on the CPU")
    add("--json", action="store_true", help="bytes and each tensor's device, as JSON")
    parser.set_defaults(
        verb=_plan,
        n_batch=_DEFAULT.n_batch,
        n_seq_max=_DEFAULT.n_seq_max,
        type_k=_DEFAULT.type_k,
        type_v=_DEFAULT.type_v,
    )
    parser.epilog = "A plan that does not fit ends with 0, too: its last lines say what to change."


def _plan(arguments: argparse.Namespace) -> int:
    plan = pg.plan_placement(
        arguments.model,
        n_gpu_layers=arguments.n_gpu_layers,
        devices=arguments.device,
        tensor_overrides=arguments.tensor_override,
        memory=dict(arguments.memory),
        session=pg.SessionSettings(
            n_ctx=arguments.n_ctx,
            n_batch=arguments.n_batch,
            n_seq_max=arguments.n_seq_max,
            type_k=arguments.type_k,
            type_v=arguments.type_v,
            offload_kv=not arguments.no_offload_kv,
        ),
    )
    if arguments.json:
        say_json(plan.document())
    else:
        say(str(plan))
    return 0


def _memory(text: str) -> tuple[str, str]:
    name, equals, size = text.partition("=")
    if not (name and equals and size):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SIZE such as Vulkan0=8GiB")
    return name, size


def _override(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not (pattern and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is no REGEX=NAME such as ffn_.*_exps=CPU")
    return pattern, name
