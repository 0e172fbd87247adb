"""phiggml inspect: what a GGUF file holds, and what the numbers of a tensor are like."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import phiggml as pg
from phiggml.cli_histogram import Histogram, bars, histogram, tensor_figures, write_picture
from phiggml.cli_terminal import say, say_json, say_table, size
from phiggml.gguf import GGUFStrings
from phiggml.gguf_extract import require_other_file
from phiggml.gguf_piece import has_numbers
from phiggml.gguf_text import escaped, one_line, shown_shape, shown_value
from phiggml.runtime import thread_count

__all__ = ["add_inspect", "json_value", "tensor_named"]

_MOST_TEMPLATE_LINES = 4
_TEMPLATE_WIDTH = 60
_MOST_BINS = 1000
_TEXT_BINS, _PICTURE_BINS = 20, 100


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml inspect`."""
    add = parser.add_argument
    add("file", metavar="FILE.gguf", help="a file, any part of a split model, or a URL")
    add("--json", action="store_true", help="everything, arrays whole, as JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tensor", metavar="NAME", help="one tensor, and figures of its numbers")
    what.add_argument("--plot", metavar="NAME", help="a histogram of one tensor's numbers")
    bins = f"of --plot (default {_TEXT_BINS}, of a picture {_PICTURE_BINS})"
    add("--bins", type=int, metavar="N", help=bins)
    add("--log", action="store_true", help="of --plot: bars by the logarithm of the count")
    add("-o", "--out", metavar="X.png", help="of --plot: draw a picture (needs matplotlib)")
    add("--overwrite", action="store_true", help="replace X.png if it exists")
    add("--threads", type=int, metavar="N", help="default: all cores")
    parser.set_defaults(verb=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.bins is not None and not 1 <= arguments.bins <= _MOST_BINS:
        raise pg.InputError(f"inspect: bins is {arguments.bins}: it must be 1 to {_MOST_BINS}.")
    if arguments.out is not None and arguments.plot is None:
        raise pg.InputError("inspect: -o is for the picture of --plot NAME. Name a tensor.")
    if (arguments.bins is not None or arguments.log) and arguments.plot is None:
        raise pg.InputError("inspect: --bins and --log are for --plot NAME. Name a tensor.")
    with pg.GGUFFile(arguments.file) as file:
        if arguments.plot is not None:
            _plot(tensor_named(file, arguments.plot, "inspect"), arguments)
        elif arguments.tensor is not None:
            _tell_tensor(tensor_named(file, arguments.tensor, "inspect"), arguments)
        elif arguments.json:
            say_json(_document(file))
        else:
            _tell(file)
    return 0


def tensor_named(file: pg.GGUFFile, name: str, operation: str) -> pg.GGUFTensor:
    """A tensor of the file.

    Raises:
        InputError: there is none of this name; those of a similar one are listed.
    """
    tensor = file.tensors.get(name)
    if tensor is None:
        similar = difflib.get_close_matches(name, file.tensors, n=3)
        meant = f" Did you mean {', '.join(map(one_line, similar))}?" if similar else ""
        raise pg.InputError(f"{operation}: {file.path}: it has no tensor {name!r}.{meant}")
    return tensor


def json_value(value: Any) -> Any:
    """As JSON has it: arrays as lists; numbers that JSON cannot spell as strings."""
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, GGUFStrings | list | tuple):
        return [json_value(element) for element in value]
    if isinstance(value, Mapping):
        return {key: json_value(element) for key, element in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# the whole file ----------------------------------------------------------------------------------


def _summary(file: pg.GGUFFile) -> dict[str, Any]:
    metadata, tensors = file.metadata, file.tensors.values()
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    n_params = sum(math.prod(tensor.shape) for tensor in tensors)
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    return {
        "path": file.path,
        "parts": list(file.paths),
        "version": file.version,
        "byte_order": file.byte_order,
        "alignment": file.alignment,
        "nbytes": file.nbytes,
        "architecture": architecture,
        "name": metadata.get("general.name"),
        "parameters": n_params,
        "bits_per_weight": 8 * n_bytes / n_params if n_params else 0.0,
        "context_length": metadata.get(f"{architecture}.context_length"),
        "vocabulary_size": len(tokens) if isinstance(tokens, np.ndarray | GGUFStrings) else None,
        "chat_template": isinstance(metadata.get("tokenizer.chat_template"), str),
        "types": _types(file.tensors),
    }


def _types(tensors: Mapping[str, pg.GGUFTensor]) -> dict[str, dict[str, Any]]:
    """Type -> tensors and bytes of it, the largest first."""
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors.values():
        entry = found.setdefault(str(tensor.type), {"tensors": 0, "nbytes": 0})
        entry["tensors"] += 1
        entry["nbytes"] += tensor.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["nbytes"]))


def _document(file: pg.GGUFFile) -> dict[str, Any]:
    return {
        **{key: json_value(value) for key, value in _summary(file).items()},
        "metadata": {key: json_value(value) for key, value in file.metadata.items()},
        "tensors": [_described(tensor) for tensor in file.tensors.values()],
    }


def _described(tensor: pg.GGUFTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": str(tensor.type),
        "shape": list(tensor.shape),
        "nbytes": tensor.nbytes,
        "path": tensor.path,
        "offset": tensor.offset,
    }


def _tell(file: pg.GGUFFile) -> None:
    summary = _summary(file)
    facts = f"{size(file.nbytes)}, GGUF version {file.version}, {file.byte_order}-endian"
    parts = file.paths if len(file.paths) > 1 else ()
    rows = [
        ("file", f"{one_line(file.path)}, {facts}"),
        *_labelled("parts", [one_line(Path(part).name) for part in parts]),
        ("architecture", _or_dash(summary["architecture"])),
        ("name", _or_dash(summary["name"])),
        ("parameters", f"{summary['parameters']:,}"),
        ("bits per weight", f"{summary['bits_per_weight']:.2f}"),
        *_labelled("types", _shares(summary["types"])),
        ("context length", _or_dash(summary["context_length"])),
        ("vocabulary", _or_dash(summary["vocabulary_size"])),
        *_labelled("chat template", _template(file.metadata.get("tokenizer.chat_template"))),
    ]
    _say_facts(rows)
    say()
    metadata = [
        (one_line(key), shown_value(value, quoted=False)) for key, value in file.metadata.items()
    ]
    say_table(("metadata", "value"), metadata)
    say()
    tensors = [
        (one_line(tensor.name), shown_shape(tensor.shape), str(tensor.type), f"{tensor.nbytes:,}")
        for tensor in file.tensors.values()
    ]
    say_table(("tensor", "shape", "type", "bytes"), tensors, right=(3,))


def _say_facts(rows: list[tuple[str, str]]) -> None:
    for label, value in rows:
        say(f"{label:<15}  {escaped(value)}")


def _labelled(label: str, lines: list[str]) -> list[tuple[str, str]]:
    return [("" if i else label, line) for i, line in enumerate(lines)]


def _shares(types: Mapping[str, Mapping[str, int]]) -> list[str]:
    whole = max(sum(entry["nbytes"] for entry in types.values()), 1)
    return [
        f"{entry['nbytes'] / whole:6.1%} {type}, {_n_of(entry['tensors'], 'tensor')}, "
        f"{size(entry['nbytes'])}"
        for type, entry in types.items()
    ] or ["-"]


def _template(template: Any) -> list[str]:
    """How long a chat template is, and its first lines."""
    if not isinstance(template, str):
        return ["no"]
    lines = template.split("\n")
    head = (
        line[start : start + _TEMPLATE_WIDTH]
        for line in lines
        for start in range(0, max(len(line), 1), _TEMPLATE_WIDTH)
    )
    shown = list(itertools.islice(head, _MOST_TEMPLATE_LINES))
    if next(head, None) is not None:
        shown.append("...")
    return [f"{len(template):,} characters, {_n_of(len(lines), 'line')}:", *shown]


def _n_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s'[: count != 1]}"


def _or_dash(value: Any) -> str:
    return "-" if value is None else shown_value(value, quoted=False)


# one tensor --------------------------------------------------------------------------------------


def _tell_tensor(tensor: pg.GGUFTensor, arguments: argparse.Namespace) -> None:
    threads = thread_count(arguments.threads, "inspect")
    figures = tensor_figures(tensor, threads) if has_numbers(tensor.type) else None
    described = {} if figures is None else dataclasses.asdict(figures)
    if arguments.json:
        say_json(json_value({**_described(tensor), "figures": described or None}))
        return
    rows = [
        ("tensor", one_line(tensor.name)),
        ("file", one_line(tensor.path)),
        ("type", f"{tensor.type}, {tensor.type.bits_per_weight:g} bits per weight"),
        ("shape", shown_shape(tensor.shape)),
        ("offset", f"{tensor.offset:,}"),
        ("bytes", f"{tensor.nbytes:,}"),
        ("numbers", f"{math.prod(tensor.shape):,}"),
    ]
    for key, label in (("min", "min"), ("max", "max"), ("mean", "mean"), ("std", "std")):
        value = described.get(key)
        rows.append((label, "-" if value is None else f"{value:.6g}"))
    if figures is not None:
        rows += [("NaN", f"{figures.n_nan:,}"), ("infinite", f"{figures.n_infinite:,}")]
    _say_facts(rows)


def _plot(tensor: pg.GGUFTensor, arguments: argparse.Namespace) -> None:
    if not has_numbers(tensor.type):
        raise pg.UnsupportedError(
            f"inspect: tensor {tensor.name!r}: nothing turns {tensor.type} into numbers."
        )
    threads = thread_count(arguments.threads, "inspect")
    n_bins = arguments.bins or (_TEXT_BINS if arguments.out is None else _PICTURE_BINS)
    found = histogram(tensor, tensor_figures(tensor, threads), n_bins, threads=threads)
    title = f"{one_line(tensor.name)}: {tensor.type}, {shown_shape(tensor.shape)}"
    if arguments.out is not None:
        path = Path(arguments.out)
        require_other_file(path, tensor, "inspect")
        write_picture(found, path, title, log=arguments.log, overwrite=arguments.overwrite)
    if arguments.json:
        say_json(_histogram_document(tensor, found))
    elif arguments.out is not None:
        say(f"{one_line(arguments.out)}: {title}")
    else:
        say(f"{title}{', bars by the logarithm of the count' if arguments.log else ''}")
        for line in bars(found, log=arguments.log):
            say(line)
        say(found.outside())


def _histogram_document(tensor: pg.GGUFTensor, found: Histogram) -> dict[str, Any]:
    return {
        **_described(tensor),
        "edges": found.edges.tolist(),
        "counts": found.counts.tolist(),
        "below": found.n_below,
        "above": found.n_above,
        "nan": found.n_nan,
        "infinite": found.n_infinite,
    }
