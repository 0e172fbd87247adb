"""How important the columns of a model's tensors are: read from a file, and fitted to a model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.errors import InputError
from phiggml.gguf_text import one_line
from phiggml.gguf_value import GGUFValue
from phiggml.imatrix_file import Imatrix, read_imatrix

__all__ = ["FittedImatrix", "Imatrix", "ImatrixSource", "fitted", "read_imatrix"]

# What users pass: importances by tensor name, a file of them, or one that has been read.
ImatrixSource = Mapping[str, npt.ArrayLike] | str | os.PathLike[str] | Imatrix

_MADE_FOR_IT = "Pass one that was made from this model."
_ANEW = "Collect it anew."
_FLOATS = "Pass float32."
_MOST_NAMED = 8
_MOST_EXPERTS = 3
# Source: llama-quantize keeps 127 bytes of a string (llama_model_kv_override).
_MOST_TEXT_BYTES = 127
# Source: llama-quantize leaves out importances of these that do not fit, others are refused.
_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})


@dataclass(frozen=True)
class FittedImatrix:
    """Importances that fit a model.

    Attributes:
        importances: tensor name -> float32[experts, n], C-contiguous, finite and not negative; of
            tensors that the model has.
        metadata: what the quantized file says about the file they come from, in llama-quantize's
            order; nothing where they come from none.
        warnings: sentences about what was left out or is not known.
    """

    importances: dict[str, npt.NDArray[np.float32]]
    metadata: dict[str, GGUFValue] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def fitted(
    imatrix: ImatrixSource | None, tensors: Iterable[tuple[str, Sequence[int]]]
) -> FittedImatrix | None:
    """Checks importances against a model's tensors, before any work is done with them.

    Args:
        imatrix: tensor name -> importances, float32[n] for rows of n (float32[experts, n], or
            flattened, for a tensor of experts); or a file of them; or None.
        tensors: name and shape of each of the model's tensors.

    Returns:
        The importances of tensors that are there; None of None.

    Raises:
        InputError: they belong to another model (most of their names are no tensors of it), or
            are not of the right length, finite and not negative (all faults together).
        FormatError: the file is no sound importance matrix.
        OSError: it cannot be read.

    Cost:
        A copy only of arrays that are not float32 and C-contiguous.

    Source:
        Lengths as llama_model_quantize checks them, metadata as llama-quantize writes it (b11549).

    Example:
        >>> flat = np.ones(512, np.float32)
        >>> fit = fitted({"ffn_up_exps": flat}, [("ffn_up_exps", (2, 64, 256))])
        >>> fit.importances["ffn_up_exps"].shape
        (2, 256)
    """
    if imatrix is None:
        return None
    if isinstance(imatrix, str | os.PathLike):
        imatrix = read_imatrix(imatrix)
    read = imatrix if isinstance(imatrix, Imatrix) else None
    given = imatrix.importances if isinstance(imatrix, Imatrix) else imatrix
    if not isinstance(given, Mapping):
        raise InputError(
            f"imatrix: {given!r}: it must be a mapping from tensor names to importances, or the "
            "path of a file of them."
        )
    shapes = {name: tuple(shape) for name, shape in tensors}
    where = "imatrix" if read is None or read.file is None else f"imatrix: {one_line(read.file)}"
    known = len(shapes.keys() & given.keys())
    if 2 * known < len(given) or not known:
        few = f"only {known}" if known else "none"
        raise InputError(
            f"{where}: {few} of its {len(given)} names is a tensor of this model. {_MADE_FOR_IT}"
        )
    fit = _Fit(shapes, read)
    for name, values in given.items():
        fit.add(name, values)
    fit.require_no_faults(where)
    return FittedImatrix(
        fit.importances,
        {} if read is None else _metadata(read),
        tuple(f"{where}: {sentence}" for sentence in fit.warnings()),
    )


class _Fit:
    """Importances tensor by tensor: what fits, what is wrong, and what to warn of."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Imatrix | None) -> None:
        self.importances: dict[str, npt.NDArray[np.float32]] = {}
        self._shapes = shapes
        self._read = read
        self._faults: list[tuple[str, str]] = []  # what is wrong, and what to do
        self._unknown: list[str] = []
        self._left_out: list[str] = []
        self._unseen: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, values: npt.ArrayLike) -> None:
        """Takes in the importances of one tensor."""
        shown = one_line(str(name))
        try:
            array: npt.NDArray[Any] = np.asarray(values)
        except (TypeError, ValueError):
            self._faults.append((f"{shown}: it is no array", _FLOATS))
            return
        if array.dtype.kind != "f":
            self._faults.append((f"{shown}: its dtype is {array.dtype}", _FLOATS))
            return
        with np.errstate(over="ignore"):
            array = np.asarray(array, dtype=np.float32, order="C")
        if not np.isfinite(array).all() or (array < 0).any():
            self._faults.append((f"{shown}: they must be finite and not negative", _ANEW))
        if name not in self._shapes:
            self._unknown.append(name)
            return
        shape = self._shapes[name]
        experts, n = math.prod(shape[:-2]), shape[-1]
        if array.size == experts * n and array.shape[-1:] in {(n,), (experts * n,)}:
            self.importances[name] = array.reshape(experts, n)
            self._look_for_unseen(name, flattened=array.shape[0] != experts > 1)
        elif self._read is not None and name in _EMBEDDINGS:
            self._left_out.append(name)
        else:
            wanted = f"float32[{n}]" if experts == 1 else f"float32[{experts}, {n}]"
            self._faults.append((f"{shown}: its shape is {array.shape}, not {wanted}", ""))

    def _look_for_unseen(self, name: str, *, flattened: bool) -> None:
        if self._read is None:
            return
        unseen = self._read.unseen.get(name, ())
        if flattened:
            # llama-imatrix writes ones for experts without data, which no input would be.
            ones = (self.importances[name] == 1).all(axis=1)
            unseen = tuple(np.flatnonzero(ones).tolist())
        if unseen:
            self._unseen[name] = unseen

    def require_no_faults(self, where: str) -> None:
        """Raises all faults as one."""
        if not self._faults:
            return
        named = [fault for fault, _ in self._faults[:_MOST_NAMED]]
        if len(self._faults) > len(named):
            named.append(f"and {len(self._faults) - len(named)} more")
        remedies = dict.fromkeys(remedy or _MADE_FOR_IT for _, remedy in self._faults)
        raise InputError(f"{where}: {'; '.join(named)}. {' '.join(remedies)}")

    def warnings(self) -> list[str]:
        """Sentences, a few for each matter."""
        found = []
        if self._unknown:
            found.append(
                f"{_some(self._unknown)}: this model has no such tensor. It was left out."
                if len(self._unknown) == 1
                else f"{_some(self._unknown)}: this model has no such tensors. They were left out."
            )
        found += [
            f"{one_line(name)}: it does not fit this model's. It was left out."
            for name in self._left_out
        ]
        for name, unseen in [*self._unseen.items()][:_MOST_NAMED]:
            experts = len(self.importances[name])
            found.append(
                f"{one_line(name)}: {_unseen_experts(unseen, experts)} saw no data: all columns "
                "count the same there."
            )
        more = len(self._unseen) - _MOST_NAMED
        if more > 0:
            found.append(f"{more} more tensors have experts that saw no data.")
        return found


def _some(names: Sequence[str]) -> str:
    first = one_line(str(names[0]))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _unseen_experts(unseen: tuple[int, ...], experts: int) -> str:
    """Which of the experts, in few words."""
    if len(unseen) == experts:
        return "it" if experts == 1 else f"all {experts} experts"
    if len(unseen) == 1:
        return f"expert {unseen[0]}"
    named = [str(expert) for expert in unseen[:_MOST_EXPERTS]]
    more = len(unseen) - len(named)
    last = f"{more} more" if more else named.pop()
    return f"experts {', '.join(named)} and {last}"


def _metadata(imatrix: Imatrix) -> dict[str, GGUFValue]:
    if imatrix.file is None:
        return {}
    found = {"file": GGUFValue(_cut(os.fsencode(imatrix.file)), "STRING")}
    if imatrix.datasets:
        dataset = imatrix.datasets[0].encode("utf-8", "surrogateescape")
        found["dataset"] = GGUFValue(_cut(dataset), "STRING")
    found["entries_count"] = GGUFValue(imatrix.n_entries, "UINT32")
    if imatrix.n_chunks > 0:
        found["chunks_count"] = GGUFValue(imatrix.n_chunks, "UINT32")
    return {f"quantize.imatrix.{key}": value for key, value in found.items()}


def _cut(text: bytes) -> str:
    """As much as llama-quantize keeps, though the cut may go through a letter."""
    return text[:_MOST_TEXT_BYTES].split(b"\0")[0].decode("utf-8", "surrogateescape")
