"""Write the reference data of the tests, and the tiny checkpoints that they run on.

    python tools/make_reference.py            all of it
    python tools/make_reference.py --logits   logits and texts only; checkpoints stay as they are

The logits are those of transformers in float32 on the CPU, token ids those of sentencepiece, chats
those of transformers' apply_chat_template. Needs torch, transformers, sentencepiece, safetensors
and protobuf (which transformers reads tokenizer.model with).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from nano_checkpoint import write_index
from nano_tokenizer import ChatTokenizer
from reference_checkpoints import CHECKPOINTS, write_checkpoint
from reference_texts import CHATS, token_texts

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
NANO = ROOT / "examples" / "phi3-nano"
SEED = 20240423
LENGTHS = (16, 200)
POSITIONS = 12  # of the longer texts

README = """\
# Reference data

Written by `python tools/make_reference.py`; tests read it and need neither torch nor transformers.
Made with {versions}, seed {seed}, on {machine}.

| file | what it is | truth |
| --- | --- | --- |
| `logits_<checkpoint>.npz` | for n = 16 and 200: `tokens_n` int32[n], `positions_n` int32[p], \
`logits_n` float32[p, n_vocab], the logits after the token at each of the positions | \
transformers, float32, CPU, eager attention, reloaded from the checkpoint |
| `tokenizer_phi3_nano.json` | strings and their ids, no BOS | sentencepiece on tokenizer.model |
| `chat_phi3_nano.json` | conversations, their text and its ids | transformers' \
apply_chat_template, tokenizers on tokenizer.json |
| `phi3-mini-tiny/` | random weights; multi-head attention, f32, one file, old config layout | |
| `phi3.5-mini-tiny/` | random weights; long rope, bf16, two shards with an index, new layout \
(`rope_parameters`); `config.rope_scaling.json` says the same in the old layout, and gives the \
same logits | |
| `phi3-medium-tiny/` | random weights; grouped-query attention, f16, two shards without an index, \
old layout | |

Tokens are uniformly random over pieces and added tokens. Checkpoint seeds are in
`tools/reference_checkpoints.py`. The checkpoints' files depend on seeds and versions alone; logits
may differ between machines by float32 rounding (about 1e-6 of their size).
"""


def load(folder: Path, config: str = "config.json") -> torch.nn.Module:
    """The model in float32, from a copy of ``folder`` that has the index transformers asks for."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy)
        shutil.copyfile(folder / config, copy / "config.json")
        files = sorted(copy.glob("model-*.safetensors"))
        if files and not (copy / "model.safetensors.index.json").exists():
            tensors: dict[str, torch.Tensor] = {}
            weight_map: dict[str, str] = {}
            for file in files:
                with safe_open(file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118  (not a mapping)
                        tensors[name] = shard.get_tensor(name)
                        weight_map[name] = file.name
            write_index(copy, tensors, weight_map)
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            copy, dtype=torch.float32, attn_implementation="eager"
        )
    return model  # in evaluation mode


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    logits: np.ndarray = model(input_ids=ids, use_cache=False).logits[0].numpy()
    return logits


def write_logits(folder: Path) -> None:
    """Write logits_<folder>.npz, and check that every config layout gives the same logits."""
    model = load(folder)
    markers = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(SEED)
    arrays: dict[str, Any] = {}
    for n in LENGTHS:
        tokens = rng.integers(3, max(markers.values()) + 1, n).astype(np.int32)
        logits = logits_of(model, tokens)
        if not np.isfinite(logits).all() or logits.std() < 0.5:
            raise ValueError(f"{folder.name}: the logits are degenerate")
        few = np.linspace(0, n - 1, POSITIONS).round().astype(np.int32)
        positions = np.arange(n, dtype=np.int32) if n <= LENGTHS[0] else few
        for other in folder.glob("config.*.json"):
            same = logits_of(load(folder, other.name), tokens)
            if not np.array_equal(same, logits):
                raise ValueError(f"{folder.name}: {other.name} gives other logits")
        arrays |= {
            f"tokens_{n}": tokens,
            f"positions_{n}": positions,
            f"logits_{n}": logits[positions],
        }
    path = DATA / f"logits_{folder.name}.npz"
    np.savez_compressed(path, **arrays)
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, logits rms {np.sqrt((logits**2).mean()):.3f}"
    )


def write_rows(name: str, rows: Sequence[object]) -> None:
    """A JSON array with one row a line."""
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    (DATA / name).write_text(text, encoding="utf-8")


def write_texts() -> None:
    """Write the token ids and the rendered chats of phi3-nano."""
    pieces = ChatTokenizer((NANO / "tokenizer.model").read_bytes())
    texts = token_texts(SEED, count=200)
    write_rows("tokenizer_phi3_nano.json", [{"text": t, "ids": pieces.encode(t)} for t in texts])
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    chats = []
    for messages in CHATS:
        for prompt in (True, False):
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            ids = tokenizer(text, add_special_tokens=False).input_ids
            chats.append(
                {
                    "messages": messages,
                    "add_generation_prompt": prompt,
                    "text": text,
                    "ids": ids,
                }
            )
    write_rows("chat_phi3_nano.json", chats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--logits", action="store_true", help="leave the checkpoints as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    DATA.mkdir(parents=True, exist_ok=True)
    for kind in CHECKPOINTS:
        if not arguments.logits:
            write_checkpoint(kind, DATA / kind.name)
        write_logits(DATA / kind.name)
    write_logits(NANO)
    write_texts()
    packages = ("torch", "transformers", "sentencepiece", "safetensors", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    text = README.format(versions=versions, seed=SEED, machine=machine)
    (DATA / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
