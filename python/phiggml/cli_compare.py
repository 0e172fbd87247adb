"""phiggml compare: what each quant type does to a tensor, or to all tensors of a file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.cli_compare_imatrix import Importances, read_importances
from phiggml.cli_compare_picture import require_picture, write_picture
from phiggml.cli_compare_selection import Selection, select
from phiggml.cli_compare_source import ComparedSource, FloatTensor, open_source
from phiggml.cli_inspect import json_value
from phiggml.cli_terminal import ProgressBar, say, say_json
from phiggml.comparison import ComparedType, TypeComparison, pooled, types_named
from phiggml.gguf_text import one_line, shown_shape
from phiggml.runtime import thread_count

__all__ = ["add_compare"]

_MOST_NAMES = 3
_BYTES_OF_A_NUMBER = 4


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml compare`."""
    parser.epilog = (
        "Of a file with several tensors, those of two or more axes are taken together, as if each "
        "were scaled to a root mean square of 1: nrmse is the root of the mean of its squares, "
        "cosine the mean, both weighted by numbers; max abs is the greatest, seconds the sum. "
        "Tensors that are quantized already are dequantized first. Seconds are those of "
        "quantizing numbers that are in memory."
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a .npy or .safetensors file; GGUF: any part, or a URL")
    add("--tensor", metavar="NAME", help="one tensor alone")
    add("--types", metavar="Q4_K,...", help="default: all that fit; some only with --imatrix")
    add("--imatrix", metavar="FILE", help="importances: llama-imatrix's file, or float[n] as .npy")
    add("--threads", type=int, metavar="N", help="default: all cores")
    add("--json", action="store_true", help="report as JSON")
    add("--plot", metavar="X.png", help="draw the error against the bits (needs matplotlib)")
    add("--overwrite", action="store_true", help="replace X.png if it exists")
    add("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(verb=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    types = None
    if arguments.types is not None:
        names = [name.strip() for name in arguments.types.split(",")]
        types = types_named([name for name in names if name], "compare")
    threads = thread_count(arguments.threads, "compare")
    picture = None if arguments.plot is None else Path(arguments.plot)
    if picture is not None:
        require_picture(picture, arguments.file, overwrite=arguments.overwrite)
    elif arguments.overwrite:
        raise pg.InputError("compare: --overwrite is for the picture of --plot. Name one.")
    with ExitStack() as files:
        source = open_source(arguments.file, files)
        imatrix = None if arguments.imatrix is None else read_importances(arguments.imatrix)
        selection = select(source, arguments.tensor, types, imatrix=imatrix)
        with ProgressBar(quiet=arguments.quiet) as bar:
            found = _measured(selection, imatrix, threads, progress=bar)
    title = _title(source, selection)
    if picture is not None:
        heading = title if imatrix is None else f"{title}, with importances"
        write_picture(found, picture, heading, overwrite=arguments.overwrite)
    if arguments.json:
        say_json(_document(source, selection, imatrix, found=found))
    else:
        for line in (title, "", str(found), *_notes(selection, imatrix)):
            say(line)
    return 0


def _measured(
    selection: Selection, imatrix: Importances | None, threads: int, *, progress: ProgressBar
) -> TypeComparison:
    done, total = 0, _BYTES_OF_A_NUMBER * selection.count * len(selection.types)
    parts = []
    for tensor in selection.tensors:
        for x, importances in _matrices(tensor, imatrix, threads):
            rows: list[ComparedType] = []
            for type in selection.types:
                rows += _compared(tensor, x, type, importances=importances, threads=threads)
                done += _BYTES_OF_A_NUMBER * x.size
                progress(pg.Progress("compare", done, total))
            parts.append((x.size, TypeComparison(tuple(rows))))
    return parts[0][1] if len(parts) == 1 else pooled(parts)


def _matrices(
    tensor: FloatTensor, imatrix: Importances | None, threads: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]]:
    """The tensor with its importances; each of its matrices, where those have their own."""
    x = tensor.read(threads)
    if not np.isfinite(x).all():
        raise pg.InputError(
            f"compare: tensor {tensor.name!r} holds NaN or infinity. Clean it, or name another one "
            "by --tensor."
        )
    if imatrix is None:
        yield x, None
        return
    importances = imatrix.of(tensor)
    yield from zip(x if len(importances) > 1 else [x], importances, strict=True)


def _compared(
    tensor: FloatTensor,
    x: npt.NDArray[Any],
    type: pg.QuantType,
    *,
    importances: npt.NDArray[np.float32] | None,
    threads: int,
) -> TypeComparison:
    try:
        return pg.compare_types(x, [type], imatrix=importances, threads=threads)
    except pg.InputError as error:
        raise pg.InputError(f"compare: tensor {tensor.name!r}: {error}") from error


# what is told ------------------------------------------------------------------------------------


def _title(source: ComparedSource, selection: Selection) -> str:
    types = ", ".join(dict.fromkeys(tensor.type for tensor in selection.tensors))
    if len(selection.tensors) > 1:
        count = f"{len(selection.tensors):,} tensors, {selection.count:,} numbers"
        return f"{one_line(Path(source.path).name)}: {count}, {types}"
    (tensor,) = selection.tensors
    return f"{one_line(tensor.name)}: {types}, {shown_shape(tensor.shape)}"


def _notes(selection: Selection, imatrix: Importances | None) -> list[str]:
    """What one has to know about the table."""
    lines = []
    if imatrix is not None:
        lines.append(f"importances: {one_line(imatrix.path)}")
    held = dict.fromkeys(tensor.type for tensor in selection.tensors if tensor.quantized)
    if held:
        lines.append(
            f"from {', '.join(held)}, dequantized: the errors are against those numbers, not "
            "against the numbers that they once were"
        )
    if selection.left_out:
        lines.append(f"left out: {'; '.join(_grouped(selection.left_out))}")
    if selection.greatest_block is not None:
        lines.append(
            f"types with blocks of more than {selection.greatest_block} are left out: most rows "
            "are no multiple of them; --types takes them where rows fit"
        )
    return ["", *lines] if lines else []


def _grouped(left_out: dict[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(left_out.values()):
        names = [one_line(name) for name, why in left_out.items() if why == reason]
        which = f" ({', '.join(names)})" if len(names) <= _MOST_NAMES else ""
        yield f"{len(names):,} {reason}{which}"


def _document(
    source: ComparedSource,
    selection: Selection,
    imatrix: Importances | None,
    *,
    found: TypeComparison,
) -> dict[str, Any]:
    tensors = [
        {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape)}
        for tensor in selection.tensors
    ]
    return {
        "path": source.path,
        "imatrix": None if imatrix is None else imatrix.path,
        "numbers": selection.count,
        "types": [json_value(dataclasses.asdict(row)) for row in found],
        "tensors": tensors,
        "left_out": selection.left_out,
    }
