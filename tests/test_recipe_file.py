"""Recipes: what they hold, their files, and what a model becomes by them."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiggml as pg
from phiggml.errors import FormatError, InputError
from phiggml.quantization import QuantizeOptions, quantize_model
from phiggml.recipe import ModelShape, Plan, Recipe, TensorFacts, plan_types, recipe_of
from tiny_models import KINDS, importances, write_source

SHAPE = ModelShape("phi3", n_layer=2, n_head=4, n_head_kv=4, n_embd=256, n_ff=512)
TENSORS = [
    TensorFacts("token_embd.weight", (40, 256), "F16"),
    TensorFacts("output.weight", (40, 256), "F16"),
    TensorFacts("output_norm.weight", (256,), "F32"),
    *(
        TensorFacts(f"blk.{i}.{name}.weight", (16, n), "F16")
        for i in range(2)
        for name, n in (("attn_qkv", 256), ("ffn_up", 96), ("ffn_down", 512))
    ),
]
FULL = Recipe(
    "q4_k_m",
    {r"^blk\.0\.": "q8_0", "ffn": "Q5_K", "é\ud800\n": "f16"},
    pure=True, quantize_output=False, output_type="iq4_nl", embedding_type="bf16",
    tensors={"blk.0.ffn_up.weight": "Q4_0", 'a "b" é': "q6_k"},
)  # fmt: skip
BAD = "phiggml recipe show MODEL --save FILE"


def planned(recipe: Recipe | str, **more: Any) -> Plan:
    return plan_types(SHAPE, TENSORS, recipe, **more)


def types_of(plan: Plan) -> dict[str, str]:
    return {row.name: row.type for row in plan.tensors}


def rows_of(plan: Plan) -> list[tuple[str, str, int]]:
    return [(row.name, row.type, row.nbytes) for row in plan.tensors]


# what a recipe holds ------------------------------------------------------------------------------


def test_names_are_canonical() -> None:
    assert FULL.type == "Q4_K_M"
    assert list(FULL.overrides.items()) == [
        (r"^blk\.0\.", "Q8_0"), ("ffn", "Q5_K"), ("é\ud800\n", "F16"),
    ]  # fmt: skip
    assert (FULL.output_type, FULL.embedding_type) == ("IQ4_NL", "BF16")
    assert dict(FULL.tensors) == {"blk.0.ffn_up.weight": "Q4_0", 'a "b" é': "Q6_K"}


def test_a_recipe_cannot_be_changed() -> None:
    given = {"ffn": "Q8_0"}
    recipe = Recipe("Q4_0", given)
    given["attn"] = "F16"
    assert dict(recipe.overrides) == {"ffn": "Q8_0"}
    with pytest.raises(TypeError):
        recipe.overrides["attn"] = "F16"  # type: ignore[index]
    with pytest.raises(AttributeError):
        recipe.type = "F16"  # type: ignore[misc]


def test_equality_minds_the_order_of_overrides_alone() -> None:
    one = Recipe("Q4_0", {"a": "F16", "b": "F32"}, tensors={"x": "F16", "y": "F32"})
    assert one == Recipe("q4_0", {"a": "f16", "b": "f32"}, tensors={"y": "F32", "x": "F16"})
    assert hash(one) == hash(Recipe("q4_0", {"a": "f16", "b": "f32"}, tensors=one.tensors))
    assert one != Recipe("Q4_0", {"b": "F32", "a": "F16"}, tensors=one.tensors)
    assert one != Recipe("Q4_0", one.overrides)
    assert one != "Q4_0"


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies_are_equal(twin: Callable[[Recipe], Recipe]) -> None:
    assert twin(FULL) == FULL
    with pytest.raises(TypeError):
        twin(FULL).tensors["x"] = "F16"  # type: ignore[index]


def test_a_report_is_values_all_through() -> None:
    plan = planned("Q8_0", overrides={"ffn": "Q4_0"})
    assert dataclasses.asdict(plan)["recipe"]["overrides"] == {"ffn": "Q4_0"}
    assert pickle.loads(pickle.dumps(plan)).recipe == plan.recipe
    assert repr(Recipe("Q8_0", {"a": "F16"})).startswith(
        "Recipe(type='Q8_0', overrides={'a': 'F16'}"
    )


def test_text() -> None:
    assert str(Recipe("Q8_0")) == "Q8_0"
    assert str(FULL).encode("ascii", "backslashreplace").decode() == (
        "Q4_K_M\npure: True\nquantize_output: False\noutput_type: IQ4_NL\nembedding_type: BF16\n"
        "override '^blk\\\\.0\\\\.': Q8_0\noverride 'ffn': Q5_K\n"
        "override '\\xe9\\ud800\\n': F16\nblk.0.ffn_up.weight: Q4_0\na \"b\" \\xe9: Q6_K"
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"type": "Q4_K"}, "'Q4_K': no model can be"),
        ({"type": None}, "None: no model"),
        ({"type": Recipe("Q4_0")}, "no model"),
        ({"overrides": {"(": "F16"}}, r"override '\(': it is no regular expression"),
        ({"overrides": {"a" * 1001: "F16"}}, "at most"),
        ({"overrides": {b"a": "F16"}}, "no regular expression"),
        ({"overrides": {"a": "Q4_K_M"}}, "override 'a': 'Q4_K_M' is no type"),
        ({"overrides": ["a"]}, r"overrides: \['a'\]: it must be a mapping"),
        ({"tensors": {"a": "nonesuch"}}, "tensor 'a': 'nonesuch' is no type"),
        ({"tensors": {"a" * 64: "F16"}}, "no tensor's name"),
        ({"tensors": {"": "F16"}}, "no tensor's name"),
        ({"tensors": {"\ud800": "F16"}}, "no tensor's name"),
        ({"tensors": None}, "tensors: None: it must be a mapping"),
        ({"pure": 1}, "pure: 1: it must be true or false"),
        ({"quantize_output": None}, "quantize_output: None"),
        ({"output_type": "Q4_K_M"}, "output_type: 'Q4_K_M' is no type"),
        ({"embedding_type": 3}, "embedding_type: 3 is no type"),
    ],
)
def test_wrong_values(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Recipe(**{"type": "Q4_0", **fields})


def test_wrong_values_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        Recipe("Q9", {"(": "Q9_K", "a": "F16"}, pure=2, tensors={"": "Q9_K"})  # type: ignore[arg-type]
    for offender in ("'Q9'", "override '('", "pure: 2", "tensor ''"):
        assert offender in str(caught.value)
    assert str(caught.value).count("'Q9_K' is no type") == 2


# what a call adds ---------------------------------------------------------------------------------


def test_a_type_is_a_recipe() -> None:
    options = QuantizeOptions(pure=True, output_type="q8_0", max_memory=1 << 30)
    assert recipe_of("q4_0", {"a": "f16"}, options) == Recipe(
        "Q4_0", {"a": "F16"}, pure=True, output_type="Q8_0"
    )
    assert recipe_of("Q4_0") == recipe_of(Recipe("Q4_0")) == Recipe("Q4_0")


def test_overrides_of_the_call_come_first() -> None:
    recipe = Recipe(
        "Q4_0", {"ffn": "Q8_0", "attn": "Q5_0"},
        tensors={"blk.0.ffn_up.weight": "F16", "blk.0.attn_qkv.weight": "F16"},
    )  # fmt: skip
    merged = recipe_of(recipe, {"up": "q5_1", "attn": "Q4_1"})
    assert list(merged.overrides.items()) == [("up", "Q5_1"), ("attn", "Q4_1"), ("ffn", "Q8_0")]
    assert not merged.tensors
    assert recipe_of(recipe, {"down": "F16"}).tensors == recipe.tensors


def test_options_of_the_call_are_added() -> None:
    recipe = Recipe("Q4_0", output_type="Q8_0", quantize_output=False)
    same = QuantizeOptions(output_type="q8_0", embedding_type="F16", pure=True)
    assert recipe_of(recipe, None, same) == Recipe(
        "Q4_0", output_type="Q8_0", quantize_output=False, embedding_type="F16", pure=True
    )


def test_options_that_conflict() -> None:
    recipe = Recipe("Q4_0", output_type="Q8_0", embedding_type="F16")
    options = QuantizeOptions(output_type="Q6_K", embedding_type="Q6_K")
    with pytest.raises(InputError, match=r"output_type is 'Q6_K' in the call and 'Q8_0' in the rec"
                       r".*; embedding_type is .*Give it in one place"):  # fmt: skip
        recipe_of(recipe, None, options)
    exact = Recipe("Q4_0", tensors={"output.weight": "Q8_0"})
    for options in (QuantizeOptions(pure=True), QuantizeOptions(quantize_output=False)):
        with pytest.raises(InputError, match=r"types by tensor \(1\)\. Change them by over"):
            planned(exact, options=options)


# what a model becomes -----------------------------------------------------------------------------


def test_exact_types_come_before_all_others() -> None:
    recipe = Recipe(
        "Q8_0", {"blk": "Q4_0"}, output_type="Q6_K", embedding_type="Q6_K", quantize_output=False,
        tensors={"output.weight": "Q5_0", "token_embd.weight": "Q5_1", "blk.0.ffn_up.weight": "F16"}
    )  # fmt: skip
    plan = planned(recipe)
    types = types_of(plan)
    assert types["output.weight"] == "Q5_0"
    assert types["token_embd.weight"] == "Q5_1"
    assert types["blk.0.ffn_up.weight"] == "F16"
    assert types["blk.0.attn_qkv.weight"] == types["blk.1.ffn_up.weight"] == "Q4_0"
    rules = {row.name: row.rule for row in plan.tensors}
    assert rules["output.weight"] == rules["blk.0.ffn_up.weight"] == "tensors"
    assert rules["blk.1.ffn_up.weight"] == "override 'blk'"
    assert rules["output_norm.weight"] == ""
    assert (plan.type, plan.file_type) == ("Q8_0", 7)


def test_rules_are_told() -> None:
    options = QuantizeOptions(embedding_type="Q4_0", output_type="Q5_0")
    plan = planned("Q8_0", overrides={"down": "Q6_K", "weight": "Q4_1"}, options=options)
    rules = {row.name: row.rule for row in plan.tensors}
    assert rules["token_embd.weight"] == "embedding_type"
    assert rules["output.weight"] == "output_type"
    assert rules["output_norm.weight"] == ""
    assert rules["blk.1.ffn_down.weight"] == "override 'down'"
    assert rules["blk.1.ffn_up.weight"] == "override 'weight'"
    assert {row.rule for row in planned("Q8_0").tensors} == {"", "type"}


def test_an_override_that_an_option_beats_is_noted() -> None:
    plan = planned(
        "Q8_0", overrides={"^output": "Q4_0"}, options=QuantizeOptions(output_type="F16")
    )
    assert types_of(plan)["output.weight"] == "F16"
    assert plan.notes == ("override '^output' has no effect on any tensor",)


def test_names_that_the_model_has_not() -> None:
    names = {"blk.0.ffn_up.weight": "F16", "blk.7.a": "F16", "blk.8.a": "F16"}
    assert planned(Recipe("Q8_0", tensors=names)).notes == (
        "the recipe names blk.7.a and 1 more, not in this model",
    )
    del names["blk.0.ffn_up.weight"]
    with pytest.raises(InputError, match="none of its 2 names is a tensor of this model"):
        planned(Recipe("Q8_0", tensors=names))


def test_exact_types_that_cannot_be() -> None:
    tensors = {
        "output_norm.weight": "Q8_0", "output.weight": "IQ2_XXS", "blk.0.ffn_up.weight": "Q4_K",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        planned(Recipe("Q8_0", tensors=tensors))
    message = str(caught.value)
    assert "output_norm.weight: the recipe makes it Q8_0, and the rules never change" in message
    assert "output.weight: the chosen type needs an importance matrix" in message
    assert "ffn_up.weight: a row of 96 numbers is no multiple of Q4_K's block" in message
    # What it is already, it may be.
    planned(Recipe("Q8_0", tensors={"output_norm.weight": "F32"}))


PLANS: dict[str, Callable[[], Plan]] = {
    "type": lambda: planned("Q4_K_M"),
    "fallbacks": lambda: planned("IQ4_XS", overrides={"up": "Q6_K"}),
    "options": lambda: planned(
        "Q3_K_M", overrides={"down": "Q8_0", "output": "F16"},
        options=QuantizeOptions(output_type="Q8_0", embedding_type="Q5_0"),
    ),
    "kept output": lambda: planned("Q4_0", options=QuantizeOptions(quantize_output=False)),
    "pure": lambda: planned("Q4_K_S", options=QuantizeOptions(pure=True, output_type="Q8_0")),
    "importances": lambda: planned("IQ3_M", imatrix_names={t.name for t in TENSORS}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_saved_plan_is_the_same_plan(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]()
    path = tmp_path / "recipe.json"
    assert plan.recipe is not None
    # The types of both are among those of the tensors.
    assert (plan.recipe.output_type, plan.recipe.embedding_type) == (None, None)
    plan.recipe.save(path)
    loaded = Recipe.load(path)
    assert loaded == plan.recipe
    # Without an importance matrix the rules would choose others.
    imatrix = {t.name for t in TENSORS} if name == "importances" else None
    again = planned(loaded, imatrix_names=imatrix)
    assert rows_of(again) == rows_of(plan)
    assert again.file_type == plan.file_type
    assert {row.rule for row in again.tensors} == {"", "tensors"}
    assert again.notes == ()
    assert again.recipe == plan.recipe


@pytest.mark.parametrize("kind", ["fused", "experts", "odd"])
def test_a_saved_plan_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.gguf", KINDS[kind])
    given = quantize_model(
        source, tmp_path / "given.gguf", "Q4_K_M", imatrix=importances(KINDS[kind]),
        overrides={"ffn_down": "IQ4_XS", "narrow": "Q6_K"},
        options=QuantizeOptions(output_type="Q8_0"), threads=1,
    )  # fmt: skip
    assert given.plan.recipe is not None
    given.plan.recipe.save(tmp_path / "recipe.json")
    quantize_model(
        source, tmp_path / "loaded.gguf", Recipe.load(tmp_path / "recipe.json"),
        imatrix=importances(KINDS[kind]), threads=1,
    )  # fmt: skip
    assert (tmp_path / "loaded.gguf").read_bytes() == (tmp_path / "given.gguf").read_bytes()


# files --------------------------------------------------------------------------------------------


def test_a_file_is_easy_to_edit(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    FULL.save(path)
    assert path.read_text("ascii") == (
        '{\n  "phiggml_recipe": 1,\n  "type": "Q4_K_M",\n  "pure": true,\n'
        '  "quantize_output": false,\n  "output_type": "IQ4_NL",\n  "embedding_type": "BF16",\n'
        '  "overrides": [\n    ["^blk\\\\.0\\\\.", "Q8_0"],\n    ["ffn", "Q5_K"],\n'
        '    ["\\u00e9\\ud800\\n", "F16"]\n  ],\n'
        '  "tensors": {\n    "blk.0.ffn_up.weight": "Q4_0",\n'
        '    "a \\"b\\" \\u00e9": "Q6_K"\n  }\n}\n'
    )
    assert Recipe.load(os.fspath(path)) == FULL
    assert json.loads(path.read_text()) == FULL.document()


def test_what_is_missing_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"type": "q8_0", "phiggml_recipe": 1, "output_type": null, "tensors": {}}')
    assert Recipe.load(path) == Recipe("Q8_0")
    Recipe("Q8_0").save(path, overwrite=True)
    assert path.read_text() == '{\n  "phiggml_recipe": 1,\n  "type": "Q8_0"\n}\n'


def test_saving_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    Recipe("Q8_0").save(path)
    path.chmod(0o640)
    with pytest.raises(FileExistsError):
        Recipe("Q4_0").save(path)
    assert Recipe.load(path).type == "Q8_0"
    Recipe("Q4_0").save(path, overwrite=True)
    assert Recipe.load(path).type == "Q4_0"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError):
        Recipe("Q4_0").save(tmp_path / "nowhere" / "recipe.json")
    with pytest.raises(IsADirectoryError):
        Recipe("Q4_0").save(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def text_of(**members: Any) -> bytes:
    return json.dumps({"phiggml_recipe": 1, "type": "Q4_0", **members}).encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "another format": (b"GGUF\x03\0\0\0", "not valid JSON"),
    "no UTF-8": (b'{"type": "\xff"}', "not UTF-8"),
    "an array": (b"[]", "must be one JSON object"),
    "a number": (b"1", "must be one JSON object"),
    "NaN": (text_of(pure=float("nan")), "NaN is no number"),
    "deep": (b'{"type":' * 100_000, "not valid JSON"),
    "deep array": (b"[" * 100_000, "not valid JSON"),
    "a long number": (b'{"type": ' + b"9" * 5000 + b"}", "recipe: "),
    "large": (text_of(type="Q" * (17 << 20)), "more than 16777216 bytes"),
    "empty": (b"{}", "phiggml_recipe: it must be 1, not None. type: it is missing."),
    "a later version": (text_of(phiggml_recipe=2), "must be 1, not 2"),
    "a version of another type": (text_of(phiggml_recipe=True), "must be 1, not True"),
    "a fractional version": (text_of(phiggml_recipe=1.0), "must be 1, not 1.0"),
    "another member": (text_of(types="Q4_0"), "'types' is no member of a recipe"),
    "a type of no model": (text_of(type="Q4_K"), "'Q4_K': no model can be"),
    "a type that is an object": (text_of(type={"a": 1}), "no model can be"),
    "a long type": (text_of(type="Q" * 100_000), r"'Q{59,60}\.\.\.: no model"),
    "a key twice": (b'{"phiggml_recipe": 1, "type": "Q4_0", "type": "Q8_0"}', "'type': it occurs"),
    "a tensor twice": (
        b'{"phiggml_recipe": 1, "type": "Q4_0", "tensors": {"a": "F16", "a": "F32"}}',
        "tensor 'a': it occurs more than once",
    ),
    "an override twice": (
        text_of(overrides=[["a", "F16"], ["a", "F32"]]), "override 'a': it occurs more than once"
    ),
    "overrides that are an object": (text_of(overrides={"a": "F16"}), "must be an array of pairs"),
    "overrides that are null": (text_of(overrides=None), "must be an array of pairs"),
    "an override of one": (text_of(overrides=[["a"]]), r"\['a'\] is no pair"),
    "an override that is an object": (text_of(overrides=[{"a": 1, "b": 2}]), "is no pair"),
    "an override of a number": (text_of(overrides=[[1, "F16"]]), "is no pair"),
    "a bad expression": (text_of(overrides=[["(", "F16"]]), "no regular expression"),
    "a deep expression": (text_of(overrides=[["(" * 900, "F16"]]), "no regular expression"),
    "a long expression": (text_of(overrides=[["a" * 1001, "F16"]]), "no regular expression"),
    "a great repeat": (text_of(overrides=[["a{99999999999}", "F16"]]), "no regular expression"),
    "an unknown tensor type": (text_of(overrides=[["a", "Q9"]]), "override 'a': 'Q9' is no type"),
    "tensors that are an array": (text_of(tensors=[["a", "F16"]]), "tensors: .* must be a mapping"),
    "a tensor's type that is null": (text_of(tensors={"a": None}), "tensor 'a': None is no type"),
    "a tensor's name too long": (text_of(tensors={"a" * 64: "F16"}), "no tensor's name"),
    "a tensor's name of half a letter": (text_of(tensors={"\ud800": "F16"}), "no tensor's name"),
    "a flag that is a number": (text_of(pure=0), "pure: 0: it must be true or false"),
    "many faults": (text_of(**{f"x{i}": 1 for i in range(1000)}), r"'x19' is no .*and 980 more\."),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    data, match = HOSTILE[name]
    path = tmp_path / "recipe.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=match) as caught:
        Recipe.load(path)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"recipe: {path}: ")
    assert BAD in str(caught.value)
    assert len(str(caught.value)) < 30_000


def test_all_faults_of_a_file_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(
        text_of(
            phiggml_recipe=7, type="Q9", pure=3, tensors={"a": "Q9_K"}, overrides=[["(", "F16"], 5],
            more=[],
        )
    )  # fmt: skip
    with pytest.raises(FormatError) as caught:
        Recipe.load(path)
    for offender in ("not 7", "'Q9'", "pure: 3", "tensor 'a'", "override '('", "5 is", "'more'"):
        assert offender in str(caught.value)


def test_where_the_json_breaks(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"type": "é" x}', "utf-8")
    with pytest.raises(FormatError) as caught:
        Recipe.load(path)
    assert caught.value.offset == 14


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recipe.load(tmp_path / "recipe.json")
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "pipe.json", Path(os.devnull)):
        with pytest.raises(FormatError, match="no regular file"):
            Recipe.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.sampled_from(["Q4_K_M", "q8_0", "F16", "IQ4_XS", "blk", "(", "a|b", "[^.]*", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
MEMBERS = st.dictionaries(
    st.sampled_from(["phiggml_recipe", "type", *vars(Recipe("Q4_0"))]) | st.text(max_size=8),
    JSON | st.lists(st.tuples(st.text(max_size=8), JSON), max_size=3),
    max_size=5,
)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=300, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.binary(max_size=40) | MEMBERS.map(lambda members: text_of(**members)))
def test_any_file_is_a_recipe_or_a_fault(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(data)
    try:
        recipe = Recipe.load(path)
    except FormatError as error:
        assert error.path == str(path)
        return
    recipe.save(path, overwrite=True)
    assert Recipe.load(path) == recipe


@settings(max_examples=100, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.sampled_from(pg.model_types()),
    st.dictionaries(
        st.from_regex(r"\A\^?([a-z.][*+]?){1,3}\Z"), st.sampled_from(pg.quant_types()), max_size=9
    ),
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1,
                            max_size=15), st.sampled_from(pg.quant_types())),
    st.booleans(),
)  # fmt: skip
def test_what_is_saved_is_loaded(
    tmp_path: Path, type: str, overrides: dict[str, str], tensors: dict[str, str], pure: bool
) -> None:
    recipe = Recipe(type, overrides, pure=pure, tensors=tensors)
    recipe.save(tmp_path / "recipe.json", overwrite=True)
    loaded = Recipe.load(tmp_path / "recipe.json")
    assert loaded == recipe
    assert list(loaded.overrides) == list(overrides)
