"""Which tensor of a model gets which type: upstream's rules, and the user's exceptions to them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from phiggml import _core
from phiggml.errors import FormatError, InputError
from phiggml.quant import quant_types
from phiggml.runtime import forward_log

__all__ = [
    "ModelShape",
    "Plan",
    "PlannedTensor",
    "QuantizeOptions",
    "TensorFacts",
    "model_type",
    "model_types",
    "plan_types",
]

_NEEDS_IMATRIX = (
    "the chosen type needs an importance matrix, and there is none. "
    "Pass imatrix=, or choose a type that needs none"
)
_REQUANTIZED = (
    "quantized already, and quantizing again loses quality. Start from an F16, BF16 or F32 file, "
    "or allow it: allow_requantize=True in QuantizeOptions, --allow-requantize on the command line"
)


def model_types() -> tuple[str, ...]:
    """Lists the types that a whole model can be quantized to.

    Returns:
        Canonical names, such as "Q4_K_M".

    Source:
        llama-quantize's list, less its aliases and COPY.

    Example:
        >>> len(model_types()), "Q4_K_M" in model_types()
        (35, True)
    """
    return tuple(name for name, _ in _core.recipe.model_types())


def model_type(name: str) -> str:
    """Returns the canonical name of a whole-model type.

    Args:
        name: any case.

    Raises:
        InputError: there is no such type.

    Example:
        >>> model_type("q4_k_m")
        'Q4_K_M'
    """
    canonical = name.upper() if isinstance(name, str) else ""
    if canonical not in model_types():
        raise InputError(
            f"recipe: {name!r}: no model can be quantized to this type. "
            f"Choose one of {', '.join(model_types())}."
        )
    return canonical


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantized, beyond its type.

    Attributes:
        pure: give every tensor the type's own tensor type; no mixture.
        allow_requantize: take quantized tensors as a source too (this loses quality).
        quantize_output: False leaves output.weight as it is.
        output_type: tensor type of output.weight (of the embedding, where both are one tensor).
        embedding_type: tensor type of token_embd.weight.
        max_memory: bytes of buffers in use at a time; None chooses.

    Example:
        >>> QuantizeOptions(output_type="Q8_0").pure
        False
    """

    pure: bool = False
    allow_requantize: bool = False
    quantize_output: bool = True
    output_type: str | None = None
    embedding_type: str | None = None
    max_memory: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """The hyperparameters that the rules read; those of the first layer where layers differ."""

    architecture: str
    n_layer: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0
    n_embd: int = 0
    n_ff: int = 0

    @classmethod
    def from_metadata(cls, architecture: str, metadata: Mapping[str, object]) -> ModelShape:
        """Reads them from GGUF metadata.

        Args:
            architecture: value of general.architecture, and prefix of the keys.
            metadata: GGUF keys -> plain values.

        Raises:
            FormatError: block_count is missing, or a value is no count.

        Source:
            llama_model_base::load_hparams in llama.cpp's llama-model.cpp.
        """

        def count(key: str, default: int | None = 0) -> int:
            name = f"{architecture}.{key}"
            value: Any = metadata.get(name, default)
            if hasattr(value, "__len__") and not isinstance(value, str | bytes):
                value = value[0] if len(value) else default
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise FormatError(f"recipe: {name}: it must be a count, not {value!r}.")
            number = operator.index(value)
            if not 0 <= number < 2**32:
                raise FormatError(f"recipe: {name}: {number} is out of range.")
            return number

        n_head = count("attention.head_count")
        return cls(
            architecture=architecture,
            n_layer=count("block_count", None),
            n_head=n_head,
            n_head_kv=count("attention.head_count_kv", n_head),
            n_expert=count("expert_count"),
            n_embd=count("embedding_length"),
            n_ff=count("feed_forward_length"),
        )


@dataclass(frozen=True)
class TensorFacts:
    """A tensor before quantization; `shape` in numpy order."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class PlannedTensor:
    """A row of a plan or report: what a tensor is, and what it becomes.

    Attributes:
        name: of the tensor.
        shape: in numpy order.
        source_type: what it is.
        type: what it becomes.
        source_nbytes: size of its data before.
        nbytes: size of its data after.
        note: why the type is not the one that was meant for it, or nothing.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_nbytes: int
    nbytes: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What quantization will do, tensor by tensor in the order of the file. str() is a table.

    Attributes:
        type: the whole model's type.
        file_type: value of general.file_type.
        tensors: one row for each.
        notes: what had no effect, in sentences.
    """

    type: str
    file_type: int
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of all tensor data, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a number, over all tensors."""
        numbers = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * self.nbytes / numbers if numbers else 0.0

    def __str__(self) -> str:
        rows = [
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                tensor.source_type,
                tensor.type,
                f"{tensor.nbytes:,}",
                tensor.note,
            )
            for tensor in self.tensors
        ]
        heading = ("tensor", "shape", "from", "to", "bytes", "")
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(5)]
        lines = [
            "  ".join(
                [
                    *(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)),
                    row[4].rjust(widths[4]),
                    row[5],
                ]
            ).rstrip()
            for row in [heading, *rows]
        ]
        total = f"{self.type}: {len(rows)} tensors, {self.nbytes:,} bytes, "
        return "\n".join(
            [*lines, *self.notes, total + f"{self.bits_per_weight:.2f} bits per weight"]
        )


def plan_types(
    shape: ModelShape,
    tensors: Sequence[TensorFacts],
    type: str,
    *,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions | None = None,
    imatrix_names: Collection[str] | None = None,
) -> Plan:
    """Chooses a type for each tensor, by upstream's rules and the user's exceptions to them.

    Args:
        shape: the model's hyperparameters.
        tensors: all of the model's tensors, in any order (the rules count them).
        type: of the whole model, any case.
        overrides: regular expression, searched for in tensor names -> tensor type. The first that
            matches wins; it applies to tensors that the rules let be quantized.
        options: all but max_memory matter here.
        imatrix_names: tensors that have importances; None is a model without an importance matrix.

    Returns:
        The plan, in the order in which llama-quantize writes the tensors.

    Raises:
        InputError: an unknown type or a bad expression; or tensors that cannot become what they
            should, all of them together.
        UnsupportedError: an architecture for which there are no rules.

    Source:
        llama_tensor_get_type in llama.cpp's llama-quant.cpp, called with all tensors.
    """
    options = options or QuantizeOptions()
    type = model_type(type)
    patterns = _compile_overrides(overrides or {})
    matches = {tensor.name: _first_match(patterns, tensor.name) for tensor in tensors}
    chosen = _core.recipe.plan_types(
        _core.recipe.ModelShape(**{f.name: getattr(shape, f.name) for f in fields(shape)}),
        _core.recipe.RecipeRules(
            type=type,
            pure=options.pure,
            quantize_output=options.quantize_output,
            output_type=_optional_type(options.output_type, "output_type"),
            embedding_type=_optional_type(options.embedding_type, "embedding_type"),
            has_imatrix=imatrix_names is not None,
        ),
        [_question(tensor, matches[tensor.name], patterns) for tensor in tensors],
    )
    forward_log()
    _raise_faults(tensors, chosen, options, imatrix_names)
    used = {matches[tensors[c.index].name] for c in chosen if c.allowed}
    return Plan(
        type=type,
        file_type=dict(_core.recipe.model_types())[type],
        tensors=tuple(_planned(tensors[choice.index], choice) for choice in chosen),
        notes=tuple(
            f"override {expression.pattern!r} has no effect on any tensor"
            for i, (expression, _) in enumerate(patterns)
            if i not in used
        ),
    )


_Patterns = Sequence[tuple[re.Pattern[str], str]]


def _compile_overrides(overrides: Mapping[str, str]) -> _Patterns:
    patterns = []
    for expression, type in overrides.items():
        try:
            pattern = re.compile(expression)
        except (re.error, OverflowError, RecursionError, TypeError) as error:
            raise InputError(
                f"recipe: override {expression!r}: it is no regular expression ({error}). "
                "Escape what is meant literally."
            ) from error
        patterns.append((pattern, _tensor_type(type, f"override {expression!r}")))
    return patterns


def _optional_type(name: str | None, what: str) -> str:
    """Empty for None, which leaves the choice to the rules."""
    return "" if name is None else _tensor_type(name, what)


def _tensor_type(name: str, what: str) -> str:
    """Canonical name of a type that tensors can be converted to."""
    if not isinstance(name, str) or name.upper() not in quant_types():
        raise InputError(
            f"recipe: {what}: {name!r} is no type that a tensor can be converted to. "
            f"Choose one of {', '.join(quant_types())}."
        )
    return name.upper()


def _first_match(patterns: _Patterns, name: str) -> int | None:
    return next((i for i, (pattern, _) in enumerate(patterns) if pattern.search(name)), None)


def _question(
    tensor: TensorFacts, match: int | None, patterns: _Patterns
) -> _core.recipe.RecipeTensor:
    try:
        tensor.name.encode()
    except UnicodeEncodeError:
        raise InputError(f"recipe: {tensor.name!r}: a tensor's name must be valid text.") from None
    return _core.recipe.RecipeTensor(
        name=tensor.name,
        shape=tensor.shape,
        type=tensor.type,
        override_type="" if match is None else patterns[match][1],
    )


def _planned(tensor: TensorFacts, choice: _core.recipe.PlannedTensor) -> PlannedTensor:
    rows = math.prod(tensor.shape[:-1])
    note = ""
    if choice.wanted != choice.type:
        note = f"not {choice.wanted}: rows of {tensor.shape[-1]} do not fit its blocks"
    return PlannedTensor(
        name=tensor.name,
        shape=tuple(tensor.shape),
        source_type=tensor.type,
        type=choice.type,
        source_nbytes=rows * choice.source_row_bytes,
        nbytes=rows * choice.row_bytes,
        note=note,
    )


def _faults(
    choice: _core.recipe.PlannedTensor,
    tensor: TensorFacts,
    options: QuantizeOptions,
    imatrix_names: Collection[str] | None,
) -> Iterable[str]:
    if choice.fault:
        yield choice.fault
    if choice.requires_imatrix and tensor.name not in (imatrix_names or ()):
        yield _NEEDS_IMATRIX
    if choice.requantized and not options.allow_requantize:
        yield _REQUANTIZED


def _raise_faults(
    tensors: Sequence[TensorFacts],
    chosen: Sequence[_core.recipe.PlannedTensor],
    options: QuantizeOptions,
    imatrix_names: Collection[str] | None,
) -> None:
    faults: dict[str, list[str]] = {}
    for choice in chosen:
        tensor = tensors[choice.index]
        for fault in _faults(choice, tensor, options, imatrix_names):
            faults.setdefault(fault, []).append(tensor.name)
    if faults:
        raise InputError(
            "recipe: " + " ".join(f"{_some(names)}: {fault}." for fault, names in faults.items())
        )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
