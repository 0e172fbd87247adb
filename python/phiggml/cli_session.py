"""What a command line says about a session: the model, its devices, memory and adapters."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.cli_terminal import ProgressBar
from phiggml.placement_settings import DEFAULT_CONTEXT

__all__ = [
    "FLASH_ATTENTION",
    "add_cache_arguments",
    "add_evaluation_arguments",
    "add_layers_argument",
    "add_placement_arguments",
    "add_session_arguments",
    "open_session",
    "placement_of",
    "session_settings",
]

_DEFAULT = pg.SessionSettings()
FLASH_ATTENTION: dict[str, Any] = {"auto": "auto", "on": True, "off": False}
"""What --flash-attn takes, and what it is called in Python."""


def add_layers_argument(group: argparse._ActionsContainer) -> None:
    """Declares how much of a model goes to GPUs."""
    group.add_argument(
        "--n-gpu-layers",
        type=_layers_on_gpus,
        default="auto",
        metavar="N",
        help="layers to hold on GPUs: a number, all, or auto: as many as fit (default %(default)s)",
    )


def add_placement_arguments(group: argparse._ActionsContainer) -> None:
    """Declares what goes where: the arguments of `Model`."""
    add_layers_argument(group)
    add = group.add_argument
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
        "--tensor-split",
        type=_shares,
        metavar="X,...",
        help="shares of several devices, such as 3,1; default: in proportion to what they have",
    )
    add(
        "--split-mode",
        choices=("none", "layer", "row"),
        default="layer",
        help="how several devices share the model: not, by layers, or each weight by rows "
        "(default %(default)s)",
    )


def placement_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Model` and of `plan_placement` that say what goes where."""
    return {
        "n_gpu_layers": arguments.n_gpu_layers,
        "devices": arguments.device,
        "tensor_split": arguments.tensor_split,
        "split_mode": arguments.split_mode,
        "tensor_overrides": arguments.tensor_override,
        "memory": dict(arguments.memory),
    }


def add_evaluation_arguments(group: argparse._ActionsContainer) -> None:
    """Declares how tokens are evaluated, and of what types the cache is."""
    add = group.add_argument
    add(
        "--n-batch",
        type=int,
        default=_DEFAULT.n_batch,
        metavar="N",
        help="tokens evaluated at once (default %(default)s)",
    )
    for name, default in (("k", _DEFAULT.type_k), ("v", _DEFAULT.type_v)):
        add(
            f"--type-{name}",
            default=default,
            metavar="TYPE",
            help=f"type of the {name.upper()} cache (default %(default)s)",
        )
    add("--flash-attn", choices=FLASH_ATTENTION, default="auto", help="(default %(default)s)")


def add_cache_arguments(group: argparse._ActionsContainer) -> None:
    """Declares what decides on a context's memory: the arguments of `SessionSettings`."""
    add = group.add_argument
    add(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of context (default: the model's own, at most {DEFAULT_CONTEXT})",
    )
    add_evaluation_arguments(group)
    add(
        "--offload-kv",
        action=argparse.BooleanOptionalAction,
        default=_DEFAULT.offload_kv,
        help="keep the KV cache with its layers (the default), or all of it on the CPU",
    )
    add(
        "--swa-full",
        action=argparse.BooleanOptionalAction,
        default=_DEFAULT.swa_full,
        help="keep all tokens in layers with a sliding window (the default), or fewer",
    )


def session_settings(arguments: argparse.Namespace, *, n_seq_max: int = 1) -> pg.SessionSettings:
    """What decides on a context's memory."""
    return pg.SessionSettings(
        n_ctx=arguments.n_ctx,
        n_batch=arguments.n_batch,
        n_seq_max=n_seq_max,
        type_k=arguments.type_k,
        type_v=arguments.type_v,
        flash_attn=FLASH_ATTENTION[arguments.flash_attn],
        offload_kv=arguments.offload_kv,
        swa_full=arguments.swa_full,
    )


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `run` and `chat` say about the model and its session."""
    _add_adapter_arguments(parser)
    placement = parser.add_argument_group("where the model goes")
    add_placement_arguments(placement)
    placement.add_argument(
        "--threads", type=int, metavar="N", help="default: all cores; one for a small model"
    )
    context = parser.add_argument_group("the context")
    add_cache_arguments(context)
    context.add_argument(
        "--overflow",
        choices=("error", "shift"),
        default="error",
        help="when it is full: end, or drop the older half (default %(default)s)",
    )


def _add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what changes the model's computations."""
    group = parser.add_argument_group("adapters")
    group.add_argument(
        "--lora",
        action="append",
        type=_scaled_file,
        default=[],
        metavar="FILE[=SCALE]",
        help="a LoRA adapter; may be given again",
    )
    group.add_argument(
        "--control-vector",
        action="append",
        type=_scaled_file,
        default=[],
        metavar="FILE[=SCALE]",
        help="a vector to add to the layers' outputs; may be given again",
    )


def open_session(arguments: argparse.Namespace, resources: ExitStack) -> pg.Session:
    """Loads the model, with a bar, and makes a session; `resources` closes both."""
    settings = session_settings(arguments)
    # What is wrong with a small file is said before a large one is loaded.
    vectors = [scale * pg.ControlVector(path) for path, scale in arguments.control_vector]
    for path, _ in arguments.lora:
        Path(path).stat()
    with ProgressBar() as bar:
        model = resources.enter_context(
            pg.Model(
                arguments.model,
                **placement_of(arguments),
                session=settings,
                progress=bar,
            )
        )
    session = resources.enter_context(
        pg.Session(
            model,
            **dataclasses.asdict(settings),
            overflow=arguments.overflow,
            threads=arguments.threads,
        )
    )
    loras = [
        (resources.enter_context(pg.LoraAdapter(model, path)), scale)
        for path, scale in arguments.lora
    ]
    if loras:
        session.set_lora(loras)
    if vectors:
        session.set_control_vector(sum(vectors[1:], vectors[0]))
    return session


def _layers_on_gpus(text: str) -> int | str:
    """What --n-gpu-layers takes."""
    if text in ("auto", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor all or auto") from None


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


def _scaled_file(text: str) -> tuple[str, float]:
    """A path and a scale, which is 1 unless a number follows the last equals sign."""
    path, _, scale = text.rpartition("=")
    try:
        return (path, float(scale)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares such as 3,1") from None
