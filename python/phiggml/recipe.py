"""Which tensor of a model gets which type: upstream's rules, and the user's exceptions to them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phiggml.errors import InputError
from phiggml.gguf_text import escaped
from phiggml.recipe_expression import compiled
from phiggml.recipe_fields import CHOICES, checked_fields
from phiggml.recipe_file import read_recipe, recipe_document, write_recipe
from phiggml.recipe_options import QuantizeOptions
from phiggml.recipe_plan import Plan, PlannedTensor
from phiggml.recipe_rules import ModelShape, RuleBook, TensorFacts, override_rule, some
from phiggml.recipe_type import file_type, model_type, model_types

__all__ = [
    "ModelShape",
    "Plan",
    "PlannedTensor",
    "QuantizeOptions",
    "Recipe",
    "TensorFacts",
    "model_type",
    "model_types",
    "plan_types",
    "recipe_of",
]


@dataclass(frozen=True, eq=False)
class Recipe:
    """Which tensor of a model gets which type. str() is a readable text.

    Attributes:
        type: of the whole model, such as "Q4_K_M"; its rules choose where nothing else does.
        overrides: regular expression, searched for in tensor names -> tensor type; the first that
            matches wins.
        pure, quantize_output, output_type, embedding_type: as in QuantizeOptions.
        tensors: name -> tensor type, before all others; taken or refused, never replaced by a
            type of smaller blocks. The `recipe` of a plan has all of its tensors here.

    Raises:
        InputError: there is no such type, an expression is none or could take for ever, there are
            more than 1000 of them, or an option has a wrong value; all of it together.

    Example:
        >>> import phiggml as pg
        >>> recipe = pg.Recipe("q4_k_m", {"ffn_down": "q6_k"}, output_type="Q8_0")
        >>> print(recipe)
        Q4_K_M
        output_type: Q8_0
        override 'ffn_down': Q6_K
        >>> recipe.save("recipe.json")
        >>> pg.Recipe.load("recipe.json") == recipe
        True
    """

    type: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    _: dataclasses.KW_ONLY
    pure: bool = False
    quantize_output: bool = True
    output_type: str | None = None
    embedding_type: str | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked, faults = checked_fields(vars(self))
        if faults:
            raise InputError(" ".join(["recipe:", *faults]))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe from a file that `save`, or somebody, wrote.

        Args:
            path: a JSON file: an object with "phiggml_recipe": 1, "type", and what else differs
                from a recipe's defaults. "overrides" is an array of pairs of an expression and a
                type, "tensors" an object.

        Returns:
            The recipe.

        Raises:
            FormatError: it is no recipe; all faults are named together.
            InputError: the path cannot be one.
            OSError: it cannot be read.
        """
        return cls(**read_recipe(path))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the recipe to a JSON file, one line for each override and tensor.

        Args:
            path: the file; it appears there only when it is complete.
            overwrite: whether an existing file may be replaced.

        Raises:
            FileExistsError: there is such a file, and overwrite is False.
            InputError: the name is that of a device, a pipe or a socket, or cannot be one.
            OSError: the file system refuses; nothing is left behind.
        """
        write_recipe(path, self.document(), overwrite=overwrite)

    def document(self) -> dict[str, Any]:
        """Returns what `save` writes, as values that json.dumps takes.

        Returns:
            "phiggml_recipe", the format's version; "type"; and what differs from the defaults.

        Example:
            >>> Recipe("Q8_0", {"output": "F16"}).document()
            {'phiggml_recipe': 1, 'type': 'Q8_0', 'overrides': [['output', 'F16']]}
        """
        default = vars(Recipe(self.type))
        given = {name: value for name, value in vars(self).items() if value != default[name]}
        return recipe_document({"type": self.type, **given})

    def __str__(self) -> str:
        options = [
            f"{name}: {getattr(self, name)}"
            for name, default in CHOICES.items()
            if getattr(self, name) != default
        ]
        overrides = [f"{override_rule(e)}: {type}" for e, type in self.overrides.items()]
        tensors = [f"{escaped(name)}: {type}" for name, type in self.tensors.items()]
        return "\n".join([self.type, *options, *overrides, *tensors])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        """The order of overrides matters, that of tensors does not."""
        options = tuple(getattr(self, name) for name in CHOICES)
        overrides = tuple(self.overrides.items())
        return (self.type, overrides, options, frozenset(self.tensors.items()))


_DEFAULT_OPTIONS = QuantizeOptions()


def recipe_of(
    type: str | Recipe,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions | None = None,
) -> Recipe:
    """Makes one recipe of what a call was given.

    Args:
        type: of the whole model, any case, or a recipe.
        overrides: come before those of the recipe, and before the types that it has for the names
            they match.
        options: those that choose types; they add to the recipe's.

    Returns:
        The recipe.

    Raises:
        InputError: an unknown type or a bad expression; an option that the recipe has with another
            value, or that would change types which the recipe names by tensor.
    """
    options = options or _DEFAULT_OPTIONS
    given = {name: getattr(options, name) for name in CHOICES}
    if not isinstance(type, Recipe):
        return Recipe(type, overrides or {}, **given)
    call = Recipe(type.type, overrides or {}, **given)
    changed = {
        name: getattr(call, name)
        for name, default in CHOICES.items()
        if getattr(call, name) not in (default, getattr(type, name))
    }
    _refuse_conflicts(type, changed)
    patterns = [compiled(expression) for expression in call.overrides]
    return dataclasses.replace(
        type,
        overrides={
            **call.overrides,
            **{e: t for e, t in type.overrides.items() if e not in call.overrides},
        },
        tensors={
            name: tensor
            for name, tensor in type.tensors.items()
            if not any(pattern.search(name) for pattern in patterns)
        },
        **changed,
    )


def plan_types(
    shape: ModelShape,
    tensors: Sequence[TensorFacts],
    type: str | Recipe,
    *,
    overrides: Mapping[str, str] | None = None,
    options: QuantizeOptions | None = None,
    imatrix_names: Collection[str] | None = None,
) -> Plan:
    """Chooses a type for each tensor, by upstream's rules and the user's exceptions to them.

    Args:
        shape: the model's hyperparameters.
        tensors: all of the model's tensors (the rules count them), in any order; with keep_split
            in that of the files.
        type: of the whole model, any case; or a recipe, see recipe_of.
        overrides: regular expression, searched for in tensor names -> tensor type. The first that
            matches wins; it applies to tensors that the rules let be quantized.
        options: those that choose types, and allow_requantize, matter here.
        imatrix_names: tensors that have importances; None is a model without an importance matrix.

    Returns:
        The plan, in the order in which llama-quantize writes the tensors: its own, with
        keep_split that of the files. Where a row is no
        multiple of the blocks of the type meant for it, the type is upstream's replacement, and
        the row's note says so.

    Raises:
        InputError: an unknown type or a bad expression; or tensors that cannot become what they
            should, all of them together.
        UnsupportedError: an architecture for which there are no rules.

    Source:
        llama_tensor_get_type in llama.cpp's llama-quant.cpp, called with all tensors.
    """
    options = options or _DEFAULT_OPTIONS
    recipe = recipe_of(type, overrides, options)
    book = RuleBook(
        shape, tensors, recipe, has_imatrix=imatrix_names is not None, in_order=options.keep_split
    )
    absent = _absent(recipe, tensors)
    book.raise_faults(allow_requantize=options.allow_requantize, imatrix_names=imatrix_names)
    rows = tuple(book.rows())
    return Plan(
        type=recipe.type,
        file_type=file_type(recipe.type),
        tensors=rows,
        notes=(*_idle_overrides(recipe, rows), *absent),
        recipe=dataclasses.replace(
            recipe,
            output_type=None,
            embedding_type=None,
            tensors={row.name: row.type for row in rows if row.rule},
        ),
    )


def _absent(recipe: Recipe, tensors: Sequence[TensorFacts]) -> Iterator[str]:
    """A note on tensors that a recipe names and the model has not."""
    names = {tensor.name for tensor in tensors}
    absent = [name for name in recipe.tensors if name not in names]
    if recipe.tensors and len(absent) == len(recipe.tensors):
        raise InputError(
            f"recipe: none of its {len(absent)} names is a tensor of this model. "
            "Use one that was made from this model, or one without tensors."
        )
    return iter([f"the recipe names {some(absent)}, not in this model"] if absent else [])


def _idle_overrides(recipe: Recipe, rows: Sequence[PlannedTensor]) -> Iterator[str]:
    """A note on each override that decides nothing; one that led to an exact type did."""
    used = {row.rule for row in rows}
    fixed = [row.name for row in rows if row.rule == "tensors"]
    for expression in recipe.overrides:
        if override_rule(expression) not in used:
            pattern = compiled(expression)
            if not any(pattern.search(name) for name in fixed):
                yield f"override {expression!r} has no effect on any tensor"


def _refuse_conflicts(recipe: Recipe, changed: Mapping[str, object]) -> None:
    conflicts = [
        f"{name} is {value!r} in the call and {getattr(recipe, name)!r} in the recipe"
        for name, value in changed.items()
        if getattr(recipe, name) != CHOICES[name]
    ]
    if conflicts:
        raise InputError(f"recipe: {'; '.join(conflicts)}. Give it in one place.")
    if changed and recipe.tensors:
        raise InputError(
            f"recipe: {', '.join(changed)}: the recipe names types by tensor "
            f"({len(recipe.tensors)}). Change them by overrides, or use a recipe without tensors."
        )
