"""phiggml bench: how fast a model reads and writes here."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from typing import Any

import phiggml as pg
from phiggml import _core
from phiggml.cli_session import (
    FLASH_ATTENTION,
    add_evaluation_arguments,
    add_layers_argument,
)
from phiggml.cli_terminal import ProgressBar, flush, say, say_json, size
from phiggml.gguf_text import one_line

__all__ = ["add_bench"]

_PROMPTS, _ANSWERS = [64, 512], [16, 128]


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml bench`."""
    add = parser.add_argument
    add("model", metavar="MODEL.gguf", help="a GGUF model, or the first part of a split one")
    _add_counts(parser, "-p", "--n-prompt", _PROMPTS, "tokens to read")
    _add_counts(parser, "-n", "--n-gen", _ANSWERS, "tokens to write")
    add(
        "--threads",
        type=_counts,
        default=[None],
        metavar="N,...",
        help="every test with each of these; default: all cores; one for a small model",
    )
    add_layers_argument(parser)
    add_evaluation_arguments(parser)
    add("-r", "--repetitions", type=int, default=5, metavar="N", help="of each test (default 5)")
    add("--seed", type=int, default=0, metavar="S", help="of the tokens, which are random")
    add("--json", action="store_true", help="everything as JSON, at the end")
    parser.set_defaults(verb=_bench)


def _add_counts(
    parser: argparse.ArgumentParser, flag: str, name: str, default: list[int], meaning: str
) -> None:
    shown = ",".join(map(str, default))
    parser.add_argument(
        flag,
        name,
        type=_counts,
        default=default,
        metavar="N,...",
        help=f"{meaning}, a test for each number; 0 for none (default {shown})",
    )


def _counts(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isascii() and count.isdigit() for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 64,512")
    return [int(count) for count in counts if int(count) != 0]


def _bench(arguments: argparse.Namespace) -> int:
    tests = _tests(arguments)
    with ProgressBar() as bar:
        model = pg.Model(arguments.model, n_gpu_layers=arguments.n_gpu_layers, progress=bar)
    with model:
        facts = _facts(arguments, model)
        if not arguments.json:
            _tell(facts)
        speeds = []
        for threads in arguments.threads or [None]:
            for test in tests:
                with ProgressBar(unit=" tokens") as bar:
                    (speed,) = pg.benchmark_model(
                        model,
                        **test,
                        repetitions=arguments.repetitions,
                        threads=threads,
                        n_batch=arguments.n_batch,
                        type_k=arguments.type_k,
                        type_v=arguments.type_v,
                        flash_attn=FLASH_ATTENTION[arguments.flash_attn],
                        seed=arguments.seed,
                        progress=bar,
                    )
                speeds.append(speed)
                if not arguments.json:
                    _tell_speed(speed)
    if arguments.json:
        say_json({**facts, "results": [_result(speed) for speed in speeds]})
    return 0


def _tests(arguments: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Arguments of benchmark_model that ask for one test each."""
    tests = [
        *({"n_prompt": [n], "n_gen": []} for n in arguments.n_prompt),
        *({"n_prompt": [], "n_gen": [n]} for n in arguments.n_gen),
    ]
    if not tests:
        raise pg.InputError("bench: there is nothing to measure. Give -p or -n a number above 0.")
    return tests


def _facts(arguments: argparse.Namespace, model: pg.Model) -> dict[str, Any]:
    """What the speeds are speeds of."""
    weights: Counter[str] = Counter()
    with pg.GGUFFile(arguments.model) as file:
        for name, device in model.placement.items():
            weights[device] += file.tensors[name].nbytes if name in file.tensors else 0
    descriptions = {device.name: device.description for device in pg.devices()}
    return {
        "path": arguments.model,
        "model": model.description,
        "parameters": model.n_params,
        "nbytes": model.nbytes,
        "devices": [
            {"name": name, "description": descriptions.get(name, ""), "nbytes": nbytes}
            for name, nbytes in weights.most_common()
        ],
        "n_batch": arguments.n_batch,
        "type_k": str(pg.QuantType(arguments.type_k)),
        "type_v": str(pg.QuantType(arguments.type_v)),
        "flash_attn": FLASH_ATTENTION[arguments.flash_attn],
        "seed": arguments.seed,
        "versions": {"phiggml": pg.__version__, **dict(_core.runtime.versions())},
    }


def _tell(facts: dict[str, Any]) -> None:
    numbers = f"{_in_millions(facts['parameters'])} parameters, {size(facts['nbytes'])}"
    say(f"model     {one_line(facts['model'])}, {numbers}")
    for i, device in enumerate(facts["devices"]):
        label = "" if i else "weights"
        where = f"{device['name']} ({one_line(device['description'].strip())})"
        say(f"{label:<8}  {size(device['nbytes'])} on {where}")
    flash = {True: "on", False: "off"}.get(facts["flash_attn"], "auto")
    cache = f"KV cache {facts['type_k']} and {facts['type_v']}, flash attention {flash}"
    say(f"session   {cache}, n_batch {facts['n_batch']}")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    say(f"versions  {versions}")
    say()
    say(_row("test", "threads", "tokens/s", "deviation", "ms/token"))


def _in_millions(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 10**9 else f"{count / 1e6:.2f} M"


def _tell_speed(speed: pg.Speed) -> None:
    rate = speed.tokens_per_second
    figures = (f"{rate:.2f}", f"{speed.deviation:.2f}", f"{1000 / rate:.3g}")
    say(_row(speed.name, str(speed.threads), *figures))
    flush()  # into a pipe, too: a row may take minutes


def _row(name: str, *figures: str) -> str:
    return f"{name:<10}" + "".join(f"{figure:>11}" for figure in figures)


def _result(speed: pg.Speed) -> dict[str, Any]:
    return {
        "name": speed.name,
        **dataclasses.asdict(speed),
        "tokens_per_second": speed.tokens_per_second,
        "deviation": speed.deviation,
    }
