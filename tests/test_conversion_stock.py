"""Converted files against those of llama.cpp's own converter: tensors, bytes, metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gguf_described import described
from phiggml.conversion import convert

DATA = Path(__file__).parent / "data"
STOCK: dict[str, dict[str, Any]] = json.loads(
    (DATA / "stock_conversions.json").read_text(encoding="utf-8")
)
# Names, which llama.cpp guesses from the folder's in ways of its own.
NAMES = re.compile(
    r"general\.(name|basename|finetune|size_label|version|author|organization|license.*|tags"
    r"|languages|file_type)"
)
# A token at which generation ends by generation_config.json, where llama.cpp's converter does not
# look for it, and which llama.cpp does not know by its text.
END = "tokenizer.ggml.eom_token_id"
# llama.cpp's converter finds it through tokenizer.json alone; llama.cpp takes token 0 by itself.
UNKNOWN = "tokenizer.ggml.unknown_token_id"
# Added tokens of byte-level tokenizers are told apart in ways of our own, which have own tests.
OF_BYTE_LEVEL = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}
# llama.cpp's converter writes four times the width, whatever intermediate_size says.
GUESSED = "phi2.feed_forward_length"
# A PhiMoE's graph here needs more, and takes the scale from short_mscale; see docs/decisions.md.
MOE = re.compile(
    r"phimoe\.(attention\.(key|value)_length|rope\.scaling\.attn_factor(_long)?"
    r"|router_jitter_noise)"
)


@pytest.mark.parametrize("type", ["F16", "BF16"])
@pytest.mark.parametrize("name", STOCK)
def test_tensors_are_those_of_the_stock_converter(name: str, type: str, tmp_path: Path) -> None:
    convert(DATA / name, tmp_path / "out.gguf", type)
    _, tensors = described(tmp_path / "out.gguf")
    assert tensors == STOCK[name][type]


@pytest.mark.parametrize("name", STOCK)
def test_metadata_are_those_of_the_stock_converter(name: str, tmp_path: Path) -> None:
    convert(DATA / name, tmp_path / "out.gguf", "F16")
    metadata, _ = described(tmp_path / "out.gguf")
    expected = STOCK[name]["metadata"]

    def may_differ(key: str) -> bool:
        return bool(NAMES.fullmatch(key) or MOE.fullmatch(key) or key == GUESSED)

    ours = {key for key in metadata if not may_differ(key)}
    theirs = {key for key in expected if not may_differ(key)}
    byte_level = expected["tokenizer.ggml.model"][1] == "gpt2"
    own = {key for key in ours if key.startswith("phiggml.tokenizer.") and byte_level}
    generation = json.loads((DATA / name / "generation_config.json").read_text("utf-8"))
    ends = generation["eos_token_id"]
    named = {END} if isinstance(ends, list) and not byte_level else set()
    if not (DATA / name / "tokenizer.json").exists():
        assert metadata[UNKNOWN] == ["UINT32", 0]
        named |= {UNKNOWN}
    assert ours - own == theirs | named
    assert END not in named or metadata[END][1] in ends
    for key in theirs:
        if not (byte_level and key in OF_BYTE_LEVEL):
            assert metadata[key] == expected[key], key
