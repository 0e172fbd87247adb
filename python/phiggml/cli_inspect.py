"""phiggml inspect: what a GGUF file holds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import phiggml as pg
from phiggml.cli_terminal import say, say_json, size, table
from phiggml.gguf import GGUFStrings

__all__ = ["add_inspect"]

_MOST_CHARACTERS = 60
_MOST_ELEMENTS = 4


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml inspect`."""
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument("--json", action="store_true", help="everything, arrays whole, as JSON")
    parser.set_defaults(verb=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    with pg.GGUFFile(arguments.file) as file:
        if arguments.json:
            say_json(_document(file))
        else:
            _tell(file)
    return 0


def _summary(file: pg.GGUFFile) -> dict[str, Any]:
    metadata, tensors = file.metadata, file.tensors.values()
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    n_params = sum(math.prod(tensor.shape) for tensor in tensors)
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    return {
        "path": file.path,
        "version": file.version,
        "alignment": file.alignment,
        "nbytes": file.nbytes,
        "architecture": architecture,
        "name": metadata.get("general.name"),
        "parameters": n_params,
        "bits_per_weight": 8 * n_bytes / n_params if n_params else 0.0,
        "context_length": metadata.get(f"{architecture}.context_length"),
        "vocabulary_size": None if tokens is None else len(tokens),
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
        **{key: _json_value(value) for key, value in _summary(file).items()},
        "metadata": {key: _json_value(value) for key, value in file.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": str(tensor.type),
                "shape": list(tensor.shape),
                "nbytes": tensor.nbytes,
                "offset": tensor.offset,
            }
            for tensor in file.tensors.values()
        ],
    }


def _json_value(value: Any) -> Any:
    """As JSON has it: arrays as lists; numbers that JSON cannot spell as strings."""
    if isinstance(value, np.ndarray):
        return _json_value(value.tolist())
    if isinstance(value, GGUFStrings | list | tuple):
        return [_json_value(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _tell(file: pg.GGUFFile) -> None:
    summary = _summary(file)
    n_bytes = sum(entry["nbytes"] for entry in summary["types"].values())
    rows = [
        ("file", f"{file.path}, {size(file.nbytes)}, GGUF version {file.version}"),
        ("architecture", _or_dash(summary["architecture"])),
        ("name", _or_dash(summary["name"])),
        ("parameters", f"{summary['parameters']:,}"),
        ("bits per weight", f"{summary['bits_per_weight']:.2f}"),
        *(
            (
                "types" if i == 0 else "",
                f"{entry['nbytes'] / max(n_bytes, 1):6.1%} {type}, {_tensors(entry['tensors'])}",
            )
            for i, (type, entry) in enumerate(summary["types"].items())
        ),
        ("context length", _or_dash(summary["context_length"])),
        ("vocabulary", _or_dash(summary["vocabulary_size"])),
        ("chat template", "yes" if summary["chat_template"] else "no"),
    ]
    for label, value in rows:
        say(f"{label:<15}  {value}")
    say()
    metadata = [(key, _shortened(value)) for key, value in file.metadata.items()]
    say(table(("metadata", "value"), metadata))
    say()
    tensors = [
        (tensor.name, " x ".join(map(str, tensor.shape)), str(tensor.type), f"{tensor.nbytes:,}")
        for tensor in file.tensors.values()
    ]
    say(table(("tensor", "shape", "type", "bytes"), tensors, right=(3,)))


def _or_dash(value: Any) -> str:
    return "-" if value is None else _shortened(value)


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _shortened(value: Any) -> str:
    if isinstance(value, np.ndarray | GGUFStrings):
        first = ", ".join(_shortened(value[i]) for i in range(min(len(value), _MOST_ELEMENTS)))
        # The count comes first: a narrow terminal cuts off the end.
        return f"[{first}]" if len(value) <= _MOST_ELEMENTS else f"{len(value):,}: [{first}, ...]"
    text = f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{len(text):,} characters: {text[:_MOST_CHARACTERS]}..."
