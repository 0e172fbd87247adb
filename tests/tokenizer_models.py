"""Small models with a given tokenizer, and the tokenizers that oracles make of the same files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
import phiggml as pg
import small_models
import tokenizer_texts

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "examples" / "phi3-nano"
VECTORS = ROOT / "third_party" / "llama.cpp" / "models" / "ggml-vocab-phi-3.gguf"

_spec = importlib.util.spec_from_file_location(
    "reference_tokenizers", ROOT / "tools" / "reference_tokenizers.py"
)
assert _spec is not None and _spec.loader is not None
reference_tokenizers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference_tokenizers)


@cache
def _corpus() -> list[str]:
    stories = (NANO / "heldout.txt").read_text("utf-8").splitlines(keepends=True)
    return stories + [text for text in tokenizer_texts.texts(2500, seed=99) if len(text) < 900]


@cache
def _trained(kind: str) -> str:
    return json.dumps(reference_tokenizers.train_bpe(kind, _corpus(), 1500))


def bpe_document(kind: str) -> dict[str, Any]:
    """A tokenizer.json: "gpt-2", "cl100k" or "o200k", or a variant of the second."""
    splits = {"qwen2": reference_tokenizers.QWEN2_SPLIT}
    document: dict[str, Any] = json.loads(_trained(kind if kind in _KINDS else "cl100k"))
    if kind in splits:
        set_split(document, splits[kind])
    if kind == "llama-bpe":
        # Every other merge is gone, so that most words that are tokens cannot be merged.
        document["model"]["ignore_merges"] = True
        document["model"]["merges"] = document["model"]["merges"][::2]
    return document


_KINDS = ("gpt-2", "cl100k", "o200k")


def set_split(document: dict[str, Any], pattern: str) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}


def write_bpe(folder: Path, document: Mapping[str, Any], *, rows: int = 1600) -> Path:
    """A checkpoint with this tokenizer.json; weights are zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    last = document["added_tokens"][0]["id"]
    fields = {"bos_token_id": last, "eos_token_id": last, "pad_token_id": ..., "vocab_size": rows}
    checkpoints.write_json(folder / "config.json", checkpoints.config(**fields))
    checkpoints.write_json(folder / "tokenizer.json", document)
    _write_zeros(folder, rows)
    return folder


def write_pieces(
    folder: Path,
    fast: Mapping[str, Any] | None,
    *,
    model: bytes | None = None,
    rows: int = 2112,
) -> Path:
    """A checkpoint with a tokenizer.model, phi3-nano's if none is given, and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"eos_token_id": 2, "pad_token_id": ..., "vocab_size": rows}
    checkpoints.write_json(folder / "config.json", checkpoints.config(**fields))
    (folder / "tokenizer.model").write_bytes(model or (NANO / "tokenizer.model").read_bytes())
    if fast is not None:
        checkpoints.write_json(folder / "tokenizer.json", fast)
    _write_zeros(folder, rows)
    return folder


def _write_zeros(folder: Path, rows: int) -> None:
    tensors = {}
    for name, shape in checkpoints.shapes(rows=rows).items():
        tensors[name] = ("F16", shape, np.zeros(shape, "<f2").tobytes())
    checkpoints.write_weights(folder, tensors)


def load(folder: Path) -> pg.Model:
    """The checkpoint, converted."""
    pg.convert(folder, folder / "model.gguf", "F16", overwrite=True)
    return pg.Model(folder / "model.gguf")


def with_vocabulary(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A small model with the vocabulary of another file."""
    model = small_models.small_model("phi3")
    for key in [key for key in model.metadata if key.startswith("tokenizer.")]:
        del model.metadata[key]
    model.metadata |= metadata
    rows = len(model.metadata["tokenizer.ggml.tokens"].value)
    for name in ("token_embd.weight", "output.weight"):
        model.tensors[name] = np.zeros((rows, model.tensors[name].shape[1]), np.float16)
    return model.write(path)
