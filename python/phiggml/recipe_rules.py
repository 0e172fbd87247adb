"""Upstream's rules, asked which tensor gets which type, and what the user named before them."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from phiggml import _core
from phiggml.errors import FormatError, InputError
from phiggml.quant import QuantType
from phiggml.recipe_expression import compiled
from phiggml.recipe_plan import PlannedTensor
from phiggml.recipe_type import has_blocks
from phiggml.runtime import forward_log

if TYPE_CHECKING:
    from phiggml.recipe import Recipe

__all__ = ["ModelShape", "RuleBook", "TensorFacts", "override_rule", "some"]

_NEEDS_IMATRIX = (
    "the chosen type needs an importance matrix, and there is none. "
    "Pass imatrix=, or choose a type that needs none"
)
_REQUANTIZED = (
    "quantized already, and quantizing again loses quality. Start from an F16, BF16 or F32 file, "
    "or allow it: allow_requantize=True in QuantizeOptions, --allow-requantize on the command line"
)
_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_LAYER_EMBEDDING = "per_layer_token_embd.weight"
# Every type's rows may be this long.
_WHOLE_ROW = 256


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
class _Named:
    """A type that the user named for a tensor; an exact one is taken or refused."""

    type: str
    rule: str
    exact: bool = False

    def fits(self, tensor: TensorFacts) -> bool:
        return tensor.shape[-1] % QuantType(self.type).block_size == 0


class RuleBook:
    """What a recipe makes of a model's tensors.

    Args:
        shape: the model's hyperparameters.
        tensors: all of its tensors.
        recipe: what the user asks for.
        has_imatrix: whether there is an importance matrix.
        in_order: whether the tensors stay in their order; else they get upstream's.

    Attributes:
        chosen: for each tensor, what the rules and the user made of it, in upstream's order.

    Raises:
        InputError: what no tensor can have.
        UnsupportedError: an architecture for which there are no rules.
    """

    def __init__(
        self,
        shape: ModelShape,
        tensors: Sequence[TensorFacts],
        recipe: Recipe,
        *,
        has_imatrix: bool,
        in_order: bool,
    ) -> None:
        self._shape = shape
        self._tensors = tensors
        self._recipe = recipe
        self._has_imatrix = has_imatrix
        self._in_order = in_order
        self._named = dict(self._named_types())
        given = {name: named.type for name, named in self._named.items()}
        self.chosen = self._ask(tensors, given)
        fallen = {
            tensors[choice.index].name: self._fallback(tensors[choice.index])
            for choice in self.chosen
            if choice.allowed and self._misfit(tensors[choice.index])
        }
        if fallen:
            # What was said about the first attempt and about stand-ins is no news.
            _core.runtime.take_log()
            self.chosen = self._ask(tensors, {**given, **fallen})
        forward_log()
        self._meant = self._meant_types(given)

    def rows(self) -> Iterator[PlannedTensor]:
        """The plan, tensor by tensor."""
        for choice in self.chosen:
            tensor = self._tensors[choice.index]
            rows = math.prod(tensor.shape[:-1])
            meant = self._meant.get(tensor.name, choice.type)
            note = f"not {meant}: rows of {tensor.shape[-1]} do not fit its blocks"
            named = self._named.get(tensor.name)
            yield PlannedTensor(
                name=tensor.name,
                shape=tuple(tensor.shape),
                source_type=tensor.type,
                type=choice.type,
                source_nbytes=rows * choice.source_row_bytes,
                nbytes=rows * choice.row_bytes,
                note="" if meant == choice.type else note,
                rule="" if not choice.allowed else "type" if named is None else named.rule,
            )

    def raise_faults(
        self, *, allow_requantize: bool, imatrix_names: Collection[str] | None
    ) -> None:
        """Raises one InputError for all tensors that cannot become what they should."""
        faults: dict[str, list[str]] = {}
        for choice in self.chosen:
            tensor = self._tensors[choice.index]
            for fault in self._faults(choice, tensor, allow_requantize, imatrix_names):
                faults.setdefault(fault, []).append(tensor.name)
        if faults:
            raise InputError(
                "recipe: " + " ".join(f"{some(names)}: {fault}." for fault, names in faults.items())
            )

    def _faults(
        self,
        choice: _core.recipe.PlannedTensor,
        tensor: TensorFacts,
        allow_requantize: bool,
        imatrix_names: Collection[str] | None,
    ) -> Iterable[str]:
        named = self._named.get(tensor.name)
        if named is not None and named.exact and named.type != choice.type and not choice.allowed:
            yield (
                f"the recipe makes it {named.type}, and the rules never change such a tensor, "
                f"which is {tensor.type}. Take it out of the recipe"
            )
        if choice.fault:
            yield choice.fault
        if choice.requires_imatrix and tensor.name not in (imatrix_names or ()):
            yield _NEEDS_IMATRIX
        if choice.requantized and not allow_requantize:
            yield _REQUANTIZED

    def _named_types(self) -> Iterator[tuple[str, _Named]]:
        """By tensor, in upstream's order of precedence; exact types, which it has not, first."""
        recipe = self._recipe
        patterns = [(compiled(e), type) for e, type in recipe.overrides.items()]
        # Upstream has the embedding follow the output where a model has no such tensor, unless
        # all tensors are to get the same type.
        tied = _OUTPUT not in {tensor.name for tensor in self._tensors}
        followed = tied and not recipe.pure and has_blocks(recipe.type)
        for name in (tensor.name for tensor in self._tensors):
            match = next(((p.pattern, type) for p, type in patterns if p.search(name)), None)
            embedding = name in (_EMBEDDING, _LAYER_EMBEDDING)
            if name in recipe.tensors:
                yield name, _Named(recipe.tensors[name], "tensors", exact=True)
            elif (
                embedding
                and recipe.embedding_type is not None
                and not (name == _LAYER_EMBEDDING and match)
            ):
                yield name, _Named(recipe.embedding_type, "embedding_type")
            elif name == _OUTPUT and recipe.output_type is not None:
                yield name, _Named(recipe.output_type, "output_type")
            elif match is not None:
                yield name, _Named(match[1], override_rule(match[0]))
            elif embedding and followed and recipe.output_type is not None:
                yield name, _Named(recipe.output_type, "output_type")

    def _misfit(self, tensor: TensorFacts) -> bool:
        named = self._named.get(tensor.name)
        return named is not None and not named.exact and not named.fits(tensor)

    def _fallback(self, tensor: TensorFacts) -> str:
        """What upstream takes in the place of the type named for a tensor, where it has something.

        It tells of a type that was named only where the embedding follows the output.
        """
        named = self._named[tensor.name]
        rules = replace(self._recipe, type="Q8_0", pure=False, tensors={}, overrides={})
        stand_in = TensorFacts(_EMBEDDING, tensor.shape, "F32")
        (choice,) = self._ask([stand_in], {}, rules=rules, output_type=named.type)
        return named.type if choice.type == stand_in.type else choice.type

    def _meant_types(self, given: Mapping[str, str]) -> dict[str, str]:
        """What tensors with rows that may not fit would become if they did."""
        odd = {
            self._tensors[choice.index].name
            for choice in self.chosen
            if choice.allowed and self._tensors[choice.index].shape[-1] % _WHOLE_ROW
        }
        if not odd:
            return {}
        # The rules look at whether an axis is longer than one, not at how long it is.
        whole = [
            replace(t, shape=(*(min(length, 2) for length in t.shape[:-1]), _WHOLE_ROW))
            if t.name in odd
            else t
            for t in self._tensors
        ]
        chosen = self._ask(whole, given)
        return {whole[c.index].name: c.type for c in chosen if whole[c.index].name in odd}

    def _ask(
        self,
        tensors: Sequence[TensorFacts],
        given: Mapping[str, str],
        *,
        rules: Recipe | None = None,
        output_type: str = "",
    ) -> list[_core.recipe.PlannedTensor]:
        recipe = rules or self._recipe
        return _core.recipe.plan_types(
            _core.recipe.ModelShape(
                **{f.name: getattr(self._shape, f.name) for f in fields(self._shape)}
            ),
            _core.recipe.RecipeRules(
                type=recipe.type,
                pure=recipe.pure,
                quantize_output=recipe.quantize_output or _OUTPUT in recipe.tensors,
                output_type=output_type,
                has_imatrix=self._has_imatrix,
                in_order=self._in_order,
            ),
            [_question(tensor, given.get(tensor.name, "")) for tensor in tensors],
        )


def override_rule(expression: str) -> str:
    """How a planned tensor's `rule` names an override."""
    return f"override {expression!r}"


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _question(tensor: TensorFacts, given: str) -> _core.recipe.RecipeTensor:
    try:
        tensor.name.encode()
    except UnicodeEncodeError:
        raise InputError(f"recipe: {tensor.name!r}: a tensor's name must be valid text.") from None
    return _core.recipe.RecipeTensor(
        name=tensor.name, shape=tensor.shape, type=tensor.type, override_type=given
    )
