"""Which tensor of a model each module of a LoRA adapter changes, by the rules that convert it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from phiggml.conversion.architecture import (
    EXPERT,
    Architecture,
    Form,
    ModelConfig,
    TensorRule,
    expanded,
)
from phiggml.conversion.faults import Faults
from phiggml.conversion.lora_config import AdapterConfig, Scaling
from phiggml.conversion.lora_module import AdaptedModule
from phiggml.conversion.safetensors import StoredTensor
from phiggml.errors import UnsupportedError

__all__ = ["EMBEDDING", "LoraPart", "PlannedPair", "match_modules"]

EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_EXPERTS = "experts"
_MERGE = "Merge the adapter into its base first, and convert the merged checkpoint."


@dataclass(frozen=True)
class LoraPart:
    """One module's share in a tensor of the model, or in one expert of it.

    Args:
        module: whose A and B it takes.
        scaling: of the module.
        rows: which outputs, of those the module has; None takes all.
        expert: which of `experts` parts of the rank, where one module holds all experts' matrices.
        experts: how many; 0 for a module of one matrix.
        transposed: whether the module's B @ A is the transpose of what the weight is changed by.
    """

    module: AdaptedModule
    scaling: Scaling
    rows: tuple[int, int] | None = None
    expert: int = 0
    experts: int = 0
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.scaling.rank


@dataclass(frozen=True)
class PlannedPair:
    """The A and B that the GGUF file holds for one tensor of the model.

    Args:
        target: the tensor, by its name in the model's GGUF file.
        shape: of that tensor, numpy order.
        float32: whether the model keeps it as F32 whatever its type (the router).
        parts: one, or one for each expert; None is an expert that the adapter leaves as it is.
    """

    target: str
    shape: tuple[int, ...]
    float32: bool
    parts: tuple[LoraPart | None, ...]

    @property
    def rank(self) -> int:
        """That of the file: experts of a smaller one are filled up with zeros."""
        return max(part.rank for part in self.parts if part is not None)

    @property
    def a_shape(self) -> tuple[int, ...]:
        """In the file; an embedding's A has a row for each token."""
        *leading, outputs, inputs = self.shape
        if self.target == EMBEDDING:
            return (outputs, self.rank)
        return (*leading, self.rank, inputs)

    @property
    def b_shape(self) -> tuple[int, ...]:
        *leading, outputs, inputs = self.shape
        if self.target == EMBEDDING:
            return (inputs, self.rank)
        return (*leading, outputs, self.rank)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        parts = [part for part in self.parts if part is not None]
        modules = list(dict.fromkeys(part.module.name for part in parts))
        origin = modules[0] + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")
        experts = f" ({len(parts)} of {len(self.parts)} experts)" if len(self.parts) > 1 else ""
        return f"{self.target:32} {shape:>18} rank {self.rank:<4} <- {origin}{experts}"


@dataclass(frozen=True)
class _Slot:
    """A place in a tensor of the model that a weight of the base goes to."""

    rule: TensorRule
    target: str
    form: Form
    expert: int | None


def match_modules(
    architecture: Architecture,
    config: ModelConfig,
    adapter: AdapterConfig,
    *,
    modules: tuple[AdaptedModule, ...],
    others: Mapping[str, StoredTensor],
    faults: Faults,
) -> tuple[tuple[PlannedPair, ...], tuple[str, ...]]:
    """Uses each module once, or says what prevents it.

    Args:
        architecture: of the base.
        config: of the base.
        adapter: what scales each module.
        modules: of the adapter.
        others: its tensors that are no half of a LoRA, by name in the base.
        faults: receives everything that does not fit, file and tensor named.

    Returns:
        A pair for each tensor that the adapter changes, in the architecture's order; and sentences
        about what was left out.

    Raises:
        UnsupportedError: GGUF has no place for what the adapter holds.
    """
    match = _Match(architecture, config, adapter, faults=faults)
    for module in modules:
        match.place(module)
    match.account_for(others)
    return match.pairs(), match.notes()


class _Match:
    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        adapter: AdapterConfig,
        *,
        faults: Faults,
    ) -> None:
        self._architecture = architecture
        self._sizes = config.dimensions
        self._tied = config.conditions.get("tied", False)
        self._adapter = adapter
        self._faults = faults
        # By the weight's name in the base; and those that hold all experts by their module as well.
        self._slots: dict[str, list[_Slot]] = {}
        self._stacked: dict[str, dict[str, list[_Slot]]] = {}
        for rule, layer in expanded(architecture.rules, config.dimensions["layers"]):
            if rule.only_if is None or config.conditions[rule.only_if]:
                self._add_slots(rule, layer)
        self._parts: dict[str, dict[int, LoraPart]] = {}
        self._rules: dict[str, TensorRule] = {}
        self._left_out: dict[str, int] = {}

    def place(self, module: AdaptedModule) -> None:
        """Plans what a module changes."""
        slots = self._slots.get(f"{module.name}.weight", [])
        if slots:
            self._refuse_tied(module, slots)
            self._place_matrix(module, slots)
            return
        stacked = self._stacked.get(module.parameters_of)
        if stacked is not None:
            self._place_experts(module, stacked)
        elif not self._is_left_out(f"{module.name}.weight"):
            self._faults.add(
                module.a.path,
                f"tensor {module.a.name!r}: {self._architecture.name} has no module "
                f"{module.name!r}{self._layers()}.",
            )

    def account_for(self, others: Mapping[str, StoredTensor]) -> None:
        """Takes copies of the base's embedding for what they are, and refuses the rest."""
        for name, tensor in others.items():
            owner, _, last = name.rpartition(".")
            copied = owner.endswith(".base_layer")
            slots = self._slots.get(f"{owner.removesuffix('.base_layer')}.{last}")
            if slots is None:
                if not self._is_left_out(name):
                    self._faults.add(
                        tensor.path, f"tensor {tensor.name!r} is no LoRA matrix that is known."
                    )
            elif not copied or tensor.shape != self._shape(slots[0].rule):
                what = "is of another size than the base's" if copied else "was trained as a whole"
                raise UnsupportedError(
                    f"convert-lora: {tensor.path}: tensor {tensor.name!r} {what}; a LoRA file has "
                    f"no place for it. {_MERGE}"
                )
            else:
                self._count("copies of weights of the base, which PEFT saves beside LoRA")

    def pairs(self) -> tuple[PlannedPair, ...]:
        planned = []
        for target in dict.fromkeys(s.target for slots in self._slots.values() for s in slots):
            if target not in self._parts:
                continue
            rule, parts = self._rules[target], self._parts[target]
            shape = self._shape(rule)
            every = tuple(map(parts.get, range(shape[0] if len(shape) == 3 else 1)))
            planned.append(PlannedPair(target, shape, rule.float32, every))
        return tuple(planned)

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"Left out: {count} tensors, {what}." for what, count in self._left_out.items()
        )

    def _add_slots(self, rule: TensorRule, layer: int) -> None:
        target = rule.target.format(layer=layer)
        for form in rule.forms:
            names = form.names(layer, self._sizes.get(_EXPERTS, 0))
            for i, name in enumerate(names):
                expert = i if EXPERT in form.name else None
                slots = self._slots.setdefault(name, [])
                slots.append(_Slot(rule, target, form, expert))
                if expert is None and rule.shape[0] == _EXPERTS and len(rule.shape) == 3:
                    owner = name.rpartition(".")[0]
                    self._stacked.setdefault(owner, {})[name] = slots

    def _shape(self, rule: TensorRule) -> tuple[int, ...]:
        return tuple(self._sizes[name] for name in rule.shape)

    def _layers(self) -> str:
        return f" in {self._sizes['layers']} layers"

    def _count(self, what: str) -> None:
        self._left_out[what] = self._left_out.get(what, 0) + 1

    def _is_left_out(self, name: str) -> bool:
        for part in self._architecture.left_out:
            if re.fullmatch(part.pattern, name):
                self._count(part.what)
                return True
        return False

    def _refuse_tied(self, module: AdaptedModule, slots: list[_Slot]) -> None:
        """llama.cpp would use the embedding's LoRA for the output too, wrongly turned."""
        if self._tied and slots[0].target in (EMBEDDING, _OUTPUT):
            raise UnsupportedError(
                f"convert-lora: {module.a.path}: tensor {module.a.name!r} changes a weight that "
                f"embedding and output share (tie_word_embeddings). {_MERGE}"
            )

    def _place_matrix(self, module: AdaptedModule, slots: list[_Slot]) -> None:
        """A module of one matrix; where the weight is several tensors, each takes its rows of B."""
        rule, form = slots[0].rule, slots[0].form
        names = rule.shape[-2:]
        if len(names) != 2:
            self._faults.add(
                module.a.path, f"tensor {module.a.name!r}: {module.name!r} is no matrix."
            )
            return
        outputs, inputs = form.parts * self._sizes[names[0]], self._sizes[names[1]]
        if module.embedding != (slots[0].target == EMBEDDING):
            kind = "an embedding" if module.embedding else "a linear layer"
            self._faults.add(
                module.a.path,
                f"tensor {module.a.name!r} is of {kind}, which {module.name!r} is not.",
            )
            return
        if module.embedding:
            outputs, inputs = inputs, outputs
        scaling = self._adapter.scaling(module.name)
        rank = scaling.rank
        self._check(module.a, (rank, inputs), f"(rank {rank}, inputs {inputs})")
        self._check(module.b, (outputs, rank), f"(outputs {outputs}, rank {rank})")
        for slot in slots:
            rows = None
            if slot.form.parts > 1:
                size = self._sizes[slot.rule.shape[-2]]
                rows = (slot.form.part * size, (slot.form.part + 1) * size)
            self._take(slot, slot.expert or 0, LoraPart(module, scaling, rows))

    def _place_experts(self, module: AdaptedModule, stacked: Mapping[str, list[_Slot]]) -> None:
        """A module that holds all experts' matrices of one of these parameters: which, shapes tell.

        PEFT before 0.19 took inputs for outputs.
        """
        for turned in (False, True):
            for name, slots in stacked.items():
                if self._fits(module, name, slots, turned=turned):
                    self._take_experts(module, name, slots, turned=turned)
                    return
        first = next(iter(stacked))
        self._faults.add(
            module.a.path,
            f"tensors {module.a.name!r} {module.a.shape} and {module.b.name!r} {module.b.shape}: "
            f"fit neither {' nor '.join(map(repr, stacked))} of {self._sizes[_EXPERTS]} experts "
            f"at rank {self._adapter.scaling(first).rank}.",
        )

    def _fits(self, module: AdaptedModule, name: str, slots: list[_Slot], *, turned: bool) -> bool:
        outputs = slots[0].form.parts * self._sizes[slots[0].rule.shape[-2]]
        inputs = self._sizes[slots[0].rule.shape[-1]]
        if turned:
            outputs, inputs = inputs, outputs
        width = self._sizes[_EXPERTS] * self._adapter.scaling(name).rank
        return module.a.shape == (width, inputs) and module.b.shape == (outputs, width)

    def _take_experts(
        self, module: AdaptedModule, name: str, slots: list[_Slot], *, turned: bool
    ) -> None:
        scaling, count = self._adapter.scaling(name), self._sizes[_EXPERTS]
        for slot in slots:
            size = self._sizes[slot.rule.shape[-2]]
            rows = (slot.form.part * size, (slot.form.part + 1) * size)
            for expert in range(count):
                part = LoraPart(module, scaling, rows, expert, count, turned)
                self._take(slot, expert, part)

    def _take(self, slot: _Slot, index: int, part: LoraPart) -> None:
        taken = self._parts.setdefault(slot.target, {})
        self._rules[slot.target] = slot.rule
        if index in taken:
            first = taken[index].module.a.name
            self._faults.add(
                part.module.a.path,
                f"tensor {part.module.a.name!r} changes what {first!r} changes too.",
            )
        taken[index] = part

    def _check(self, tensor: StoredTensor, shape: tuple[int, int], expected: str) -> None:
        if tensor.shape != shape:
            self._faults.add(
                tensor.path,
                f"tensor {tensor.name!r} has shape {tensor.shape}; config.json and "
                f"adapter_config.json say {expected}.",
            )
