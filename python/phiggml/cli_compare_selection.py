"""Which types are compared on which tensors of a file: all rows of a table are on the same ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import phiggml as pg
from phiggml.cli_compare_imatrix import Importances
from phiggml.cli_compare_source import ComparedSource, FloatTensor
from phiggml.comparison import fits
from phiggml.gguf_text import one_line

__all__ = ["Selection", "select"]


@dataclass(frozen=True)
class Selection:
    """What is compared.

    Attributes:
        types: to which ones.
        tensors: these.
        left_out: name -> why, of the file's other tensors where all of it was asked for.
        greatest_block: of types that nobody named, those of greater blocks are left out; None if
            none is.
    """

    types: tuple[pg.QuantType, ...]
    tensors: tuple[FloatTensor, ...]
    left_out: dict[str, str]
    greatest_block: int | None = None

    @property
    def count(self) -> int:
        """How many numbers the tensors have."""
        return sum(tensor.count for tensor in self.tensors)


def select(
    source: ComparedSource,
    name: str | None,
    types: Sequence[pg.QuantType] | None,
    *,
    imatrix: Importances | None,
) -> Selection:
    """Chooses tensors and types.

    Args:
        source: the file.
        name: of the only tensor that is asked for. Without one: all of two or more axes, for
            vectors stay as they are in any quantized model.
        types: those that are asked for; a tensor that does not fit all of them is left out.
            Without any: all whose blocks fit at least half of the numbers that can be quantized.
        imatrix: importances; a tensor without them is left out.

    Raises:
        InputError: nothing is left to compare, a type needs importances, or they do not fit.
    """
    tensors, left_out = _candidates(source, name)
    if imatrix is not None:
        _require_one(imatrix, tensors)
        left_out |= {t.name: "without importances" for t in tensors if not imatrix.has(t)}
        tensors = [tensor for tensor in tensors if imatrix.has(tensor)]
    weighted = imatrix is not None
    known = [type for type in pg.quant_types() if weighted or not type.requires_imatrix]
    greatest = _greatest_block(known, tensors)
    chosen = [t for t in known if t.block_size <= greatest] if types is None else list(types)
    for type in chosen:
        if not fits(type, 0, weighted=weighted):
            raise pg.InputError(
                f"compare: {type} needs importances. Pass --imatrix, or leave it out of --types."
            )
    block = max(type.block_size for type in chosen)
    unfit = {t.name: f"with rows of no multiple of {block}" for t in tensors if t.shape[-1] % block}
    left_out |= unfit
    tensors = [tensor for tensor in tensors if tensor.name not in unfit]
    if not tensors:
        reasons = "; ".join(f"{one_line(n)} is {why}" for n, why in [*left_out.items()][:3])
        raise pg.InputError(
            f"compare: {source.path}: there is nothing to compare: {reasons or 'it is empty'}."
        )
    if imatrix is not None:
        for tensor in tensors:
            imatrix.of(tensor)
    hidden = types is None and len(chosen) < len(known)
    return Selection(tuple(chosen), tuple(tensors), left_out, greatest if hidden else None)


def _candidates(
    source: ComparedSource, name: str | None
) -> tuple[list[FloatTensor], dict[str, str]]:
    if name is not None:
        return [_named(source, name)], {}
    tensors, left_out = list(source.tensors.values()), dict(source.left_out)
    if len(tensors) > 1:
        left_out |= {tensor.name: "of one axis" for tensor in tensors if len(tensor.shape) == 1}
        tensors = [tensor for tensor in tensors if len(tensor.shape) > 1]
    return tensors, left_out


def _named(source: ComparedSource, name: str) -> FloatTensor:
    if name in source.left_out:
        raise pg.InputError(f"compare: {source.path}: {name!r} is {source.left_out[name]}.")
    tensor = source.tensors.get(name)
    if tensor is None:
        similar = difflib.get_close_matches(name, source.tensors, n=3)
        meant = f" Did you mean {', '.join(map(one_line, similar))}?" if similar else ""
        raise pg.InputError(f"compare: {source.path}: it has no tensor {name!r}.{meant}")
    return tensor


def _require_one(imatrix: Importances, tensors: Sequence[FloatTensor]) -> None:
    if not imatrix.names_tensors and len(tensors) > 1:
        raise pg.InputError(
            f"compare: {imatrix.path}: it holds importances of one tensor. Say by --tensor of "
            "which."
        )


def _greatest_block(types: Sequence[pg.QuantType], tensors: Sequence[FloatTensor]) -> int:
    """The greatest block that fits at least half of the numbers that fit any block at all."""

    def count(block: int) -> int:
        return sum(tensor.count for tensor in tensors if tensor.shape[-1] % block == 0)

    blocks = sorted({type.block_size for type in types if type.block_size > 1})
    fitting = count(blocks[0])
    return max([b for b in blocks if 2 * count(b) >= fitting > 0], default=1)
