"""What one CPU module makes of the demo checkpoint: files, texts, logits, products.

python tools/variant_figures.py FOLDER    (PHIGGML_CPU_VARIANT names the module; started by
tools/check_variants.py) writes FOLDER/VARIANT.json and FOLDER/VARIANT.npz.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml import _core
from phiggml.cli_demo import demo_checkpoint

TYPES = ("F32", "Q4_K_M")
N_QUESTIONS = 24
N_TOKENS = 300
GREEDY = pg.Sampling(temperature=0)

Array = npt.NDArray[np.float32]


def texts(path: Path) -> list[str]:
    """Greedy answers to questions whose answers the model knows."""
    questions = json.loads((demo_checkpoint() / "questions.json").read_text("utf-8"))
    with pg.Session(path, n_ctx=512, threads=1) as session:
        return [
            session.chat(
                [{"role": "user", "content": known["question"]}], max_tokens=120, sampling=GREEDY
            ).text
            for known in questions[:N_QUESTIONS]
        ]


def logits(path: Path, *, exact: bool = False) -> Array:
    """Of every position of a story; exact: what is cached is not rounded to half precision."""
    story = (demo_checkpoint() / "heldout.txt").read_text("utf-8")[: 8 * N_TOKENS]
    settings = {"type_k": "F32", "type_v": "F32", "flash_attn": False} if exact else {}
    with pg.Session(path, n_ctx=512, threads=1, **settings) as session:
        tokens = session.model.tokenize(story)[:N_TOKENS]
        return np.asarray(session.eval(tokens, logits="all"))


def products() -> Array:
    """Of a Q4_K matrix with random vectors."""
    rng = np.random.default_rng(14)
    weights = rng.standard_normal((256, 1024), dtype=np.float32)
    vectors = rng.standard_normal((1024, 32), dtype=np.float32)
    return np.asarray(pg.quantize(weights, "Q4_K") @ vectors)


def nudged(path: Path) -> Path:
    """A copy of the model whose embeddings, in float32, are the next number up or down."""
    plain, copy = path.with_name("plain.gguf"), path.with_name("nudged.gguf")
    options = pg.QuantizeOptions(embedding_type="F32")
    pg.convert(demo_checkpoint(), plain, "Q4_K_M", options=options)
    rng = np.random.default_rng(15)
    with pg.GGUFFile(plain) as file, pg.GGUFWriter(copy) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata.exact(key)
        for tensor in file.tensors.values():
            if tensor.name == "token_embd.weight":
                numbers = tensor.dequantize()
                ends = np.where(rng.integers(0, 2, numbers.shape), np.inf, -np.inf)
                numbers = np.nextafter(numbers, ends.astype(np.float32))
                writer.add_tensor(tensor.name, numbers, "F32")
            else:
                writer.add_tensor(tensor.name, tensor.data, tensor.type)
    return copy


def main() -> None:
    folder = Path(sys.argv[1])
    variant = os.environ.get("PHIGGML_CPU_VARIANT", "best")
    arrays: dict[str, Array] = {"product": products()}
    figures: dict[str, dict[str, object]] = {"files": {}, "texts": {}}
    for type in TYPES:
        path = folder / f"{variant}-{type}.gguf"
        pg.convert(demo_checkpoint(), path, type, threads=1)
        figures["files"][type] = hashlib.sha256(path.read_bytes()).hexdigest()
        figures["texts"][type] = texts(path)
        arrays[type] = logits(path)
        if type == "F32":
            arrays["F32 exact"] = logits(path, exact=True)
        path.unlink()
    if variant == "best":
        copy = nudged(folder / "best")
        arrays["nudged"] = logits(copy)
        arrays["plain"] = logits(copy.with_name("plain.gguf"))
    np.savez(folder / f"{variant}.npz", **arrays)
    figures["module"] = {"file": Path(_core.runtime.cpu_module()).name}
    (folder / f"{variant}.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main()
