"""phiggml recipe: which tensor gets which type, before anything is quantized."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import phiggml as pg
from phiggml.cli_convert import types_table
from phiggml.cli_recipe_arguments import add_type_options, chosen_options, chosen_overrides
from phiggml.cli_terminal import ProgressBar, say, say_json, say_table
from phiggml.gguf_text import escaped
from phiggml.recipe import recipe_of

__all__ = ["add_recipe"]

_RECIPE_SUFFIX = ".json"


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declares the verbs of `phiggml recipe`."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    meaning = "show which tensor of a model gets which type, or what a saved recipe says"
    show = verbs.add_parser(
        "show", help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.", allow_abbrev=False
    )
    _add_show(show)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="a GGUF file, a checkpoint's folder or id, or FILE.json, a saved recipe",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--type", help="type of the whole model, such as Q4_K_M")
    choice.add_argument("--recipe", metavar="FILE", help="a saved recipe, in place of a type")
    parser.add_argument("--imatrix", metavar="FILE", help="importances, which the rules look at")
    add_type_options(parser)
    parser.add_argument(
        "--save",
        dest="out",
        metavar="FILE.json",
        help="write the recipe; of a model, with the type of each tensor",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.json if it exists")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no report")
    parser.set_defaults(verb=_show)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.source.lower().endswith(_RECIPE_SUFFIX):
        return _show_saved(arguments)
    report = _planned(arguments)
    if report.plan.recipe is not None:
        _save(report.plan.recipe, arguments)
    if arguments.json:
        say_json(_document(report))
    elif not arguments.quiet:
        _tell(report)
    return 0


def _show_saved(arguments: argparse.Namespace) -> int:
    for option in ("type", "recipe", "imatrix"):
        if getattr(arguments, option) is not None:
            raise pg.InputError(
                f"recipe: {arguments.source}: --{option} is for a model; this is a recipe. "
                "Name the model, and this file by --recipe."
            )
    saved = pg.Recipe.load(arguments.source)
    recipe = recipe_of(saved, chosen_overrides(arguments), chosen_options(arguments))
    _save(recipe, arguments)
    if arguments.json:
        say_json(recipe.document())
    elif not arguments.quiet:
        say(str(recipe))
    return 0


def _save(recipe: pg.Recipe, arguments: argparse.Namespace) -> None:
    """Writes what --save asked for, never over a model that was named by mistake."""
    if arguments.out is None:
        return
    if arguments.overwrite and Path(arguments.out).is_file():
        try:
            pg.Recipe.load(arguments.out)
        except pg.FormatError:
            raise pg.InputError(
                f"recipe: {arguments.out}: it is no recipe, and is not replaced by one. Save to "
                "another file, or delete it."
            ) from None
    recipe.save(arguments.out, overwrite=arguments.overwrite)


def _planned(arguments: argparse.Namespace) -> pg.Report:
    """The plan of a conversion or quantization that never happens."""
    if arguments.recipe is not None:
        type: str | pg.Recipe = pg.Recipe.load(arguments.recipe)
    elif arguments.type is not None:
        type = arguments.type
    else:
        raise pg.InputError(
            f"recipe: {arguments.source}: to what? Give --type, such as Q4_K_M, or --recipe FILE."
        )
    source = Path(arguments.source)
    gguf = source.is_file() or source.suffix.lower() == ".gguf"
    with ProgressBar(quiet=arguments.quiet) as bar:
        return (pg.quantize_model if gguf else pg.convert)(
            arguments.source,
            f"{arguments.source}-planned.gguf",
            type,
            imatrix=arguments.imatrix,
            overrides=chosen_overrides(arguments),
            options=chosen_options(arguments),
            progress=bar,
            overwrite=True,
            dry_run=True,
        )


def _document(report: pg.Report) -> dict[str, Any]:
    """What a report says of the plan; nothing was written or measured."""
    plan, whole = report.plan, report.document()
    planned = ("type", "nbytes", "bits_per_weight", "notes", "warnings", "types", "tensors")
    return {
        **{key: whole[key] for key in planned},
        "file_type": plan.file_type,
        "recipe": None if plan.recipe is None else plan.recipe.document(),
    }


def _tell(report: pg.Report) -> None:
    heading = ("tensor", "shape", "from", "to", "bytes", "chosen by", "")
    rows = [(*tensor.cells, tensor.rule, tensor.note) for tensor in report.tensors]
    say_table(heading, rows, right=(4,))
    say()
    say(types_table(report))
    for text in (*report.notes, *(f"warning: {text}" for text in report.warnings)):
        say(escaped(text))
    fallen = sum(1 for tensor in report.tensors if tensor.note)
    if fallen:
        say(f"tensors whose rows do not fit the blocks of the type meant for them: {fallen}")
    say(
        f"{report.plan.type}: {len(rows)} tensors, a file of {report.nbytes:,} bytes, "
        f"{report.bits_per_weight:.2f} bits per weight"
    )
