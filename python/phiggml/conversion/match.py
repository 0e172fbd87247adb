"""Finds for each tensor of a GGUF file what it is made of in a checkpoint, and for each its use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from phiggml.conversion.architecture import (
    EXPERT,
    Architecture,
    Form,
    ModelConfig,
    TensorRule,
    expanded,
)
from phiggml.conversion.faults import Faults
from phiggml.conversion.planned_tensor import Piece, PlannedTensor
from phiggml.conversion.safetensors import StoredTensor

__all__ = ["match_tensors"]

_FLOAT_DTYPES = ("BF16", "F16", "F32")


def match_tensors(
    architecture: Architecture,
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    *,
    folder: Path,
    faults: Faults,
) -> tuple[tuple[PlannedTensor, ...], tuple[str, ...]]:
    """Uses each source tensor once and produces each target once, or says what prevents it.

    Args:
        architecture: what is expected.
        config: sizes, conditions, and the tensors that config.json holds.
        stored: the checkpoint's tensors by name.
        folder: the checkpoint.
        faults: receives everything that does not fit, file and tensor named.

    Returns:
        The tensors in the architecture's order; and sentences about what was left out.
    """
    match = _Match(config, stored, folder, faults=faults)
    for rule, layer in expanded(architecture.rules, config.dimensions["layers"]):
        match.place(rule, layer)
    notes = match.finish(architecture)
    return tuple(match.planned.values()), notes


class _Match:
    def __init__(
        self,
        config: ModelConfig,
        stored: Mapping[str, StoredTensor],
        folder: Path,
        *,
        faults: Faults,
    ) -> None:
        self.planned = {
            name: PlannedTensor(name, (len(values),), "F32", (), values)
            for name, values in config.vectors.items()
        }
        self._config = config
        self._experts = config.dimensions.get("experts", 0)
        self._stored = stored
        self._folder = folder
        self._faults = faults
        # Which parts of each source tensor are taken.
        self._taken: dict[str, set[int]] = {}
        self._used: set[str] = set()

    def place(self, rule: TensorRule, layer: int) -> None:
        """Plans the target of a rule in one layer."""
        if rule.only_if is not None and not self._config.conditions[rule.only_if]:
            return
        found = [
            form for form in rule.forms if self._stored.keys() & form.names(layer, self._experts)
        ]
        target = rule.target.format(layer=layer)
        if found:
            self._refuse_second(found, layer)
            self._plan(rule, target, found[0], names=found[0].names(layer, self._experts))
        elif rule.is_needed(self._config.conditions):
            self._faults.add(self._folder, self._missing(rule, layer))
        elif rule.tied_to is not None and rule.tied_to in self._stored:
            tied = self._stored[rule.tied_to]
            kind = "F32" if rule.float32 else tied.dtype
            piece = Piece(tied, 0, math.prod(tied.shape[:-1]))
            self.planned[target] = PlannedTensor(target, tied.shape, kind, (piece,))

    def finish(self, architecture: Architecture) -> tuple[str, ...]:
        """Accounts for the tensors that nothing has used."""
        ignored = re.compile("|".join(architecture.ignored))
        counts = [0] * len(architecture.left_out)
        for name in sorted(self._stored.keys() - self._used):
            if ignored.fullmatch(name):
                continue
            for i, part in enumerate(architecture.left_out):
                if re.fullmatch(part.pattern, name):
                    counts[i] += 1
                    break
            else:
                self._faults.add(
                    self._stored[name].path,
                    f"tensor {name!r} has no place in {architecture.name}"
                    f"{self._known_sizes(name)}.",
                )
        return tuple(
            f"Left out: {count} tensor{'s' if count > 1 else ''}, {part.what}."
            for count, part in zip(counts, architecture.left_out, strict=True)
            if count
        )

    def _missing(self, rule: TensorRule, layer: int) -> str:
        first, *others = (form.name.format(layer=layer, expert="*") for form in rule.forms)
        instead = "".join(f" (nor is there {other!r})" for other in others)
        if EXPERT in rule.source:
            return f"tensors {first!r} of {self._experts} experts are missing{instead}."
        return f"tensor {first!r} is missing{instead}."

    def _known_sizes(self, name: str) -> str:
        """What config.json says about numbers in a name."""
        sizes = [f"{self._config.dimensions['layers']} layers"] if ".layers." in name else []
        if self._experts and ".experts." in name:
            sizes.append(f"{self._experts} experts")
        return f" of {' and '.join(sizes)}" if sizes else ""

    def _refuse_second(self, found: list[Form], layer: int) -> None:
        """Two forms of one tensor could say different things."""
        first = next(n for n in found[0].names(layer, self._experts) if n in self._stored)
        for form in found[1:]:
            for name in form.names(layer, self._experts):
                if name in self._stored:
                    self._used.add(name)
                    self._faults.add(
                        self._stored[name].path,
                        f"tensor {name!r} is another form of {first!r}, which is there too.",
                    )

    def _plan(self, rule: TensorRule, target: str, form: Form, *, names: tuple[str, ...]) -> None:
        shape = tuple(self._config.dimensions[name] for name in rule.shape)
        tensors = []
        for name in names:
            tensor = self._stored.get(name)
            if tensor is None:
                self._faults.add(self._folder, f"tensor {name!r} is missing.")
                continue
            taken = self._taken.setdefault(name, set())
            if form.part in taken or target in self.planned:
                self._faults.add(tensor.path, f"tensor {name!r} -> {target!r}: is taken twice.")
            taken.add(form.part)
            if len(taken) == form.parts:
                self._used.add(name)
            # The first part stands for all where several are kept in one tensor.
            if form.part == 0:
                self._check(tensor, rule, form)
            tensors.append(tensor)
        dtypes = {tensor.dtype for tensor in tensors}
        # Both 16-bit types fit into F32; neither holds the other.
        kind = dtypes.pop() if len(dtypes) == 1 and not rule.float32 else "F32"
        pieces = tuple(_pieces(tensors, form, shape))
        self.planned[target] = PlannedTensor(target, shape, kind, pieces)

    def _check(self, tensor: StoredTensor, rule: TensorRule, form: Form) -> None:
        sizes = [(name, self._config.dimensions[name]) for name in rule.shape]
        if EXPERT in form.name:
            del sizes[0]
        if form.parts > 1:
            name, size = sizes[-2]
            sizes[-2] = (f"{form.parts} * {name}", form.parts * size)
        if tensor.shape != tuple(size for _, size in sizes):
            expected = ", ".join(f"{name} {size}" for name, size in sizes)
            self._faults.add(
                tensor.path,
                f"tensor {tensor.name!r} has shape {tensor.shape}; config.json says ({expected}).",
            )
        if tensor.dtype not in _FLOAT_DTYPES:
            self._faults.add(
                tensor.path,
                f"tensor {tensor.name!r} is stored as {tensor.dtype}; "
                f"{', '.join(_FLOAT_DTYPES)} can be converted.",
            )


def _pieces(tensors: list[StoredTensor], form: Form, shape: tuple[int, ...]) -> Iterator[Piece]:
    """The rows of a target of this shape, from the tensors of a form."""
    if form.parts == 1:
        for tensor in tensors:
            yield Piece(tensor, 0, math.prod(tensor.shape[:-1]))
        return
    rows = shape[-2]
    for tensor in tensors:
        for block in range(math.prod(shape[:-2])):
            start = (block * form.parts + form.part) * rows
            yield Piece(tensor, start, start + rows)
