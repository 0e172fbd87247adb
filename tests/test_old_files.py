"""GGUF files of the Phi family that others made: what a key left out, or odd, stands for."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import nrmse
from small_models import N_VOCAB, small_model

DATA = Path(__file__).parent / "data"
SEED = 20240423

Change = Callable[[dict[str, Any], dict[str, npt.NDArray[np.float32]]], object]


def changed(source: Path, path: Path, change: Change) -> pg.Model:
    """A copy of an F32 model with other metadata or tensors."""
    with pg.GGUFFile(source) as file:
        metadata = {key: file.metadata.exact(key) for key in file.metadata}
        tensors = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
        change(metadata, tensors)
        with pg.GGUFWriter(path, overwrite=True) as writer:
            for key, value in metadata.items():
                writer.metadata[key] = value
            for name, values in tensors.items():
                writer.add_tensor(name, values)
    return pg.Model(path)


def without(*keys: str) -> Change:
    def change(metadata: dict[str, Any], _tensors: Mapping[str, Any]) -> None:
        for key in keys:
            del metadata[key]

    return change


def with_values(**values: Any) -> Change:
    """Keys are written with __ for the dot."""

    def change(metadata: dict[str, Any], _tensors: Mapping[str, Any]) -> None:
        metadata.update({key.replace("__", "."): value for key, value in values.items()})

    return change


def last_logits(model: pg.Model, n_tokens: int, n_ctx: int = 8192) -> npt.NDArray[np.float32]:
    tokens = np.random.default_rng(SEED).integers(3, 280, n_tokens)
    with pg.Session(model, n_ctx=n_ctx, type_k="F32", type_v="F32", flash_attn=False) as session:
        return session.eval(tokens)


def same(first: pg.Model, second: pg.Model, n_tokens: int) -> bool:
    """Whether they say the same; what is not the same differs by far more than these bounds."""
    error = nrmse(last_logits(first, n_tokens), last_logits(second, n_tokens))
    assert error < 1e-6 or error > 1e-3, error
    return error < 1e-6


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("old_files")

    def convert(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            pg.convert(DATA / name, path, "F32")
        return path

    return convert


WINDOW = "phi3.attention.sliding_window"


def test_a_4k_file_without_window_has_one_of_2047(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    source = converted("phi3-mini-tiny")
    old = changed(source, tmp_path / "old.gguf", without(WINDOW))
    named = changed(source, tmp_path / "named.gguf", with_values(**{WINDOW: np.uint32(2047)}))
    none = changed(source, tmp_path / "none.gguf", with_values(**{WINDOW: np.uint32(0)}))
    assert same(old, named, 2100)
    assert not same(old, none, 2100)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("phi4-tiny", without(WINDOW)),
        (
            "phi3-window-tiny",
            lambda m, _t: m.pop(WINDOW) and m.update({"phi3.context_length": np.uint32(8192)}),
        ),
        ("phi3-window-tiny", with_values(**{WINDOW: np.uint32(4096)})),
        ("phi3-window-tiny", with_values(**{WINDOW: np.uint32(2**31 - 1)})),
    ],
    ids=["BPE", "long context", "as long as the context", "longer"],
)
def test_other_files_without_window_have_none(
    converted: Callable[[str], Path], tmp_path: Path, name: str, change: Change
) -> None:
    source = converted(name)
    odd = changed(source, tmp_path / "odd.gguf", change)
    none = changed(source, tmp_path / "none.gguf", with_values(**{WINDOW: np.uint32(0)}))
    assert same(odd, none, 2100)


def test_original_context_is_4096_where_factors_are_there(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    source, key = converted("phi3.5-mini-tiny"), "phi3.rope.scaling.original_context_length"
    whole = pg.Model(source)
    assert int(whole.metadata[key]) == 4096
    old = changed(source, tmp_path / "old.gguf", without(key))
    later = changed(source, tmp_path / "later.gguf", with_values(**{key: np.uint32(8192)}))
    assert same(old, whole, 100) and same(old, whole, 4097)
    assert not same(old, later, 4097)


def test_without_factors_rope_is_plain_at_any_length(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    source = converted("phi3-128k-tiny")
    factor = {"phi3.rope.scaling.attn_factor": np.float32(1)}

    def drop(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        metadata.update(factor)
        for side in ("long", "short"):
            del tensors[f"rope_factors_{side}.weight"]

    def ones(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        metadata.update(factor)
        for side in ("long", "short"):
            tensors[f"rope_factors_{side}.weight"][:] = 1

    plain = changed(source, tmp_path / "plain.gguf", drop)
    neutral = changed(source, tmp_path / "neutral.gguf", ones)
    for n_tokens in (100, 200):
        assert same(plain, neutral, n_tokens)
        assert not same(plain, pg.Model(source), n_tokens)


def test_whole_heads_are_turned_without_a_count(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    source, key = converted("phi3-mini-tiny"), "phi3.rope.dimension_count"
    old = changed(source, tmp_path / "old.gguf", without(key))
    half = changed(source, tmp_path / "half.gguf", with_values(**{key: np.uint32(8)}))
    assert same(old, pg.Model(source), 100)
    assert not same(old, half, 100)


def test_markers_of_a_chat_are_control_tokens(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    markers = ("<|end|>", "<|assistant|>", "<|user|>", "<|system|>")
    key, user_defined = "tokenizer.ggml.token_type", 4

    def as_user_defined(metadata: dict[str, Any], _tensors: Mapping[str, Any]) -> None:
        tokens = list(metadata["tokenizer.ggml.tokens"].value)
        types = np.array(metadata[key].value)
        types[[tokens.index(marker) for marker in markers]] = user_defined
        metadata[key] = types
        metadata.pop("tokenizer.ggml.eot_token_id", None)

    model = changed(converted("phi3-mini-tiny"), tmp_path / "old.gguf", as_user_defined)
    for marker in markers:
        (token,) = model.tokenize(marker, add_special=False, parse_special=True)
        assert len(model.tokenize(marker, add_special=False)) > 1
        assert model.detokenize([token]) == ""
    assert model._open().is_end_of_generation(
        int(model.tokenize("<|end|>", add_special=False, parse_special=True)[0])
    )


def bare_models(folder: Path) -> list[Path]:
    """Models without a vocabulary, in which nobody looks at the keys that one would have."""
    four = np.full(N_VOCAB, 4)  # each token user-defined
    tokens = ["<|end|>"] * N_VOCAB
    cases: list[tuple[Any, Any]] = [
        (tokens, "a text"),
        (tokens, ["a text"] * N_VOCAB),
        (tokens, four.astype(np.uint8)),
        (tokens, np.int32(4)),
        (tokens, four[:1].astype(np.int32)),
        (np.uint32(4), four.astype(np.int32)),
        (four.astype(np.int32), four.astype(np.int32)),
        ("<|end|>", four.astype(np.int32)),
    ]
    paths = []
    for i, (tokens_value, types_value) in enumerate(cases):
        model = small_model(("phi3", "phimoe")[i % 2])
        for key in [key for key in model.metadata if key.startswith("tokenizer.")]:
            del model.metadata[key]
        model.metadata |= {
            "tokenizer.ggml.model": "no_vocab",
            model.key(".vocab_size"): np.uint32(N_VOCAB),
            "tokenizer.ggml.tokens": tokens_value,
            "tokenizer.ggml.token_type": types_value,
        }
        paths.append(model.write(folder / f"{i}.gguf"))
    return paths


def test_odd_markers_where_there_is_no_vocabulary(tmp_path: Path) -> None:
    code = """
import sys
import phiggml as pg
for path in sys.argv[1:]:
    with pg.Session(path, n_ctx=32) as session:
        print(session.eval([5]).shape[0], flush=True)
"""
    paths = bare_models(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=60
    )
    assert (child.returncode, child.stdout.split()) == (0, [str(N_VOCAB)] * len(paths))


def test_an_attention_factor_of_phi3_in_a_phimoe_file_is_the_mscale(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    """llama.cpp's converter computes it from the context; Phi-3.5-MoE's config gives another."""
    source = converted("phimoe-tiny")
    with pg.GGUFFile(source) as file:
        context = int(file.metadata["phimoe.context_length"])
        original = int(file.metadata["phimoe.rope.scaling.original_context_length"])
    prefix = "phimoe.rope.scaling.attn_factor"
    computed = math.sqrt(1 + math.log(context / original) / math.log(original))

    def factors(*values: float) -> Change:
        keys = (prefix, f"{prefix}_long")

        def change(metadata: dict[str, Any], _tensors: Mapping[str, Any]) -> None:
            for key in keys:
                metadata.pop(key)
            metadata.update({k: np.float32(v) for k, v in zip(keys, values, strict=False)})

        return change

    old = changed(source, tmp_path / "old.gguf", factors(computed))
    named = changed(source, tmp_path / "named.gguf", factors(1.243163121016122, 1.243163121016122))
    meant = changed(source, tmp_path / "meant.gguf", factors(computed, computed))
    for n_tokens in (original, original + 1):
        assert same(old, named, n_tokens)
        assert not same(old, meant, n_tokens)
