"""Expressions of overrides, which a stranger's recipe may have: no search takes for ever."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from phiggml.errors import FormatError, InputError
from phiggml.recipe import Recipe
from phiggml.recipe_expression import MOST_WAYS, compiled, ways

NAMES = ("blk.10.ffn_gate_exps.weight", "a" * 63, "ab" * 31)
PIECES = [*"ab.()()|*+?!$", ".*", ".+", "{0,9}", r"\w", "[ab]", "[^]]", "(?:", "(?=", r"\b", r"\)"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ffn_down", 1),
        (r"blk\.(1[0-9]|2[0-3])\.ffn_(up|gate)_exps\.weight$", 4),
        (r"^blk\.\d{1,2}\.", 2),
        (r"(blk\.)?\(a|b\)", 3),
        ("[]*+]|[^]|(]", 2),
        ("(?i)(?#(a|b*)(?P<n>a|b)(?P=n)(?<!c)(?=d|e)", 4),
        ("a{}{", 1),
        (".*.*.*.*", MOST_WAYS),
    ],
)
def test_ways(expression: str, expected: int) -> None:
    assert ways(expression) == expected
    assert compiled(expression).pattern == expression


@pytest.mark.parametrize(
    "expression",
    [
        "(a|aa)+$",
        "(.|.|.|.)+!",
        "((.*)*)*!",
        "(.?){60}!",
        ".?" * 60 + "!",
        "(.|.)" * 30 + "!",
        ".*.*.*.*.*!",
        "(?x)(.|.#)\n|.)+!",  # a parenthesis in a comment
        "(?x:.)",
    ],
)
def test_what_could_take_for_ever(expression: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could take for ever"):
        Recipe("Q8_0", {expression: "F16"})
    path = tmp_path / "recipe.json"
    document = {"phiggml_recipe": 1, "type": "Q8_0", "overrides": [[expression, "F16"]]}
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match="could take for ever"):
        Recipe.load(path)


def test_what_is_accepted_is_searched_for_in_time() -> None:
    """Random expressions; the bound, in seconds of this thread, is 20 times the worst seen."""
    rng = random.Random(20261123)
    accepted = refused = 0
    while accepted < 1500:
        expression = "".join(rng.choices(PIECES, k=rng.randrange(3, 26))) + "!"
        try:
            re.compile(expression)
        except re.error:
            continue
        try:
            pattern = compiled(expression)
        except InputError:
            refused += 1
            continue
        accepted += 1
        for name in NAMES:
            started = time.thread_time()
            pattern.search(name)
            assert time.thread_time() - started < 3, expression
    assert refused > 50


def test_many_of_them() -> None:
    assert len(Recipe("Q8_0", {f"a{i}": "F16" for i in range(1000)}).overrides) == 1000
    with pytest.raises(InputError, match="there are 1001, and at most 1000 may be"):
        Recipe("Q8_0", {f"a{i}": "F16" for i in range(1001)})
    with pytest.raises(InputError, match="searches for all of them could take for ever"):
        Recipe("Q8_0", {f".*.*.*.*{i}": "F16" for i in range(2)})


def test_classes_of_upstreams_expressions_are_refused() -> None:
    """To Python they mean something else, and tensors would get another type."""
    with pytest.raises(InputError, match=r"has no \[:class:\]. Write \\d for"):
        Recipe("Q8_0", {r"blk\.[[:digit:]]+\.ffn": "F16"})


def test_names_of_recipe_files(tmp_path: Path) -> None:
    recipe, path, link = Recipe("Q8_0"), tmp_path / "recipe.json", tmp_path / "link.json"
    for wrong in ("a\0b", b"a.json", 5):
        with pytest.raises(InputError, match="a path is text"):
            Recipe.load(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="a path is text"):
            recipe.save(wrong)  # type: ignore[arg-type]
    recipe.save(path)
    link.symlink_to(path.name)
    other = Recipe("Q4_0")
    other.save(link, overwrite=True)
    assert link.readlink() == Path(path.name)
    assert Recipe.load(path) == other
