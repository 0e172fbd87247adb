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
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from nano_tokenizer import ChatTokenizer
from reference_checkpoints import (
    BPE_CHECKPOINTS,
    CHECKPOINTS,
    write_bpe_checkpoint,
    write_checkpoint,
)
from reference_logits import LINE, lengths_of, limit_arrays, limit_of, load, logits_arrays
from reference_multimodal import MULTIMODAL_CHECKPOINTS, write_multimodal, write_plain
from reference_phi2 import PHI2_CHECKPOINTS, write_phi2
from reference_phimoe import PHIMOE_CHECKPOINTS, write_phimoe
from reference_router import count_router
from reference_texts import CHATS, token_texts

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
NANO = ROOT / "examples" / "phi3-nano"
SEED = 20240423

README = """\
# Reference data

Written by `python tools/make_reference.py`; tests read it and need neither torch nor transformers.
Made with {versions}, seed {seed}, on {machine}.

| file | what it is | truth |
| --- | --- | --- |
| `logits_<checkpoint>.npz` | for each length n: `tokens_n` int32[n], `positions_n` int32[p], \
`logits_n` float32[p, n_vocab], the logits after the token at each of the positions | \
transformers, float32, CPU, eager attention, no cache, reloaded from the checkpoint |
| the same, of long rope with a line at 128 | also `prefixes` int32[k], `prefix_logits` \
float32[k, n_vocab]: the logits after the last token of `tokens_300[:prefixes[i]]` | the same, \
one evaluation for each prefix |
| `limit_<checkpoint>.npz` | where window or line is that of the release (2047, 4096): `tokens` \
int32[n], `lengths` int32[k], `logits` float32[k, n_vocab], those after the first `lengths[i]` \
tokens | the same |
| `tokenizer_phi3_nano.json` | strings and their ids, no BOS | sentencepiece on tokenizer.model |
| `chat_phi3_nano.json` | conversations, their text and its ids | transformers' \
apply_chat_template, tokenizers on tokenizer.json |

Written by tools of their own: `lora_<case>/` and `lora_<case>.npz` by reference_lora.py, the other
`chat_*.json` by reference_chats.py from `templates/`, `stock_conversions.json` by
make_stock_files.py.

Lengths are 16 and 200; around a sliding window of 64 also 60, 64 and 65; around a line at 128 also
127, 128, 129 and 300. Tokens are uniformly random over pieces and added tokens; the texts of a
checkpoint with a limit are prefixes of one text.

Checkpoints of random weights, in the files and fields of the releases. Seeds are in `tools/`.

| folder | what it stands for | written by |
| --- | --- | --- |
| `phi3-mini-tiny/` | multi-head attention, f32, one file, old config layout | \
reference_checkpoints.py |
| `phi3.5-mini-tiny/` | long rope, bf16, two shards with an index, new layout \
(`rope_parameters`); `config.rope_scaling.json` says the same in the old layout, and gives the \
same logits | |
| `phi3-medium-tiny/` | grouped-query attention, f16, two shards without an index, old layout | |
| `phi3-window-tiny/` | a sliding window of 64 in a context of 4096 | |
| `phi3-128k-tiny/` | rope type "su", line at 128 of 4096, two shards | |
| `phi4-tiny/` | BPE with the cl100k split, grouped-query attention, no window | |
| `phi4-mini-tiny/` | BPE with the o200k split, tied embedding with rows beyond the tokens, \
partial rotary, long rope with a line at 128 | |
| `phi1.5-tiny/`, `phi2-tiny/` | codegen BPE, biases, LayerNorm, rotary share 0.5 and 0.4 | \
reference_phi2.py |
| `phimoe-tiny/` | 4 experts of which 2 are used, biases, long rope with a line at 128 and two \
mscales | reference_phimoe.py |
| `phimoe-hf-tiny/` | the same kind as transformers' save_pretrained writes it | |
| `slimmoe-tiny/` | head_dim 24 of hidden size 64, no long rope, window 64, experts 48 wide | |
| `phi3v-tiny/`, `phi4mm-tiny/`, `phi4v-tiny/` | a text model with a few tensors of the vision and \
speech parts; the logits are those of the plain text model | reference_multimodal.py |

transformers' Phimoe applies `short_mscale` up to original_max_position_embeddings and `long_mscale`
beyond, but computes the frequencies with the short factors always. The released remote code takes
the long factors beyond. So do the logits here: beyond the line, transformers' rotary embedding is
given the frequencies of its own longrope function for that length; up to the line nothing is
changed, which the tool checks.

The near-tie rule of the experts' router, by layer and token: how often the first or the second
expert's weight is shared with a near score (below 1), and by how much a score may change before
the choice does. Gains and seeds were chosen so that half precision (an F16 cache, flash attention)
changes no choice on the texts stored here, and that rounding to BF16 and Q8_0 keeps the best token
as tests/test_logits_types.py asks. On other texts half precision may change a choice of experts.

| checkpoint | tokens | routed | first shared | second shared | margin |
| --- | --- | --- | --- | --- | --- |
{routers}

The checkpoints' files depend on seeds and versions alone; logits may differ between machines by
float32 rounding (about 1e-6 of their size).
"""


def write_checkpoints() -> None:
    for kind in CHECKPOINTS:
        write_checkpoint(kind, DATA / kind.name)
    for tokenizer, kind in BPE_CHECKPOINTS:
        write_bpe_checkpoint(tokenizer, kind, DATA / kind.name)
    for phi2 in PHI2_CHECKPOINTS:
        write_phi2(phi2, DATA / phi2.name)
    for phimoe in PHIMOE_CHECKPOINTS:
        write_phimoe(phimoe, DATA / phimoe.name)
    for multimodal in MULTIMODAL_CHECKPOINTS:
        write_multimodal(multimodal, DATA / multimodal.text.name)


def write_logits(folder: Path, model: torch.nn.Module | None = None) -> torch.nn.Module:
    """Write logits_<folder>.npz of ``model``, of the folder's own without one; returns it."""
    model = load(folder) if model is None else model
    arrays = logits_arrays(folder, model, SEED)
    path = DATA / f"logits_{folder.name}.npz"
    np.savez_compressed(path, **arrays)
    rms = np.sqrt(np.mean(arrays["logits_200"] ** 2))
    print(f"{path.name}: {path.stat().st_size:,} bytes, logits rms {rms:.3f}")
    limit = limit_of(model)
    if limit is not None:
        path = DATA / f"limit_{folder.name}.npz"
        np.savez_compressed(path, **limit_arrays(folder, model, limit, SEED))
        print(f"{path.name}: {path.stat().st_size:,} bytes, limit {limit}")
    return model


def write_multimodal_logits() -> None:
    """Write the logits of the plain text models with the same weights."""
    for kind in MULTIMODAL_CHECKPOINTS:
        folder = DATA / kind.text.name
        with tempfile.TemporaryDirectory() as scratch:
            write_plain(kind, folder, Path(scratch) / "plain")
            model = load(Path(scratch) / "plain")
        write_logits(folder, model)


def write_router_logits() -> list[str]:
    """Write the logits of the experts' checkpoints; returns a row of the README for each."""
    rows = []
    for kind in PHIMOE_CHECKPOINTS:
        model = write_logits(DATA / kind.name)
        with np.load(DATA / f"logits_{kind.name}.npz") as arrays:
            longest = arrays[f"tokens_{lengths_of(model)[-1]}"]
        for tokens in (longest[:LINE], longest):
            n = count_router(model, tokens)
            if not n.first_shared or not n.second_shared:
                raise ValueError(f"{kind.name}: the near-tie rule does not occur: {n}")
            rows.append(
                f"| {kind.name} | {len(tokens)} | {n.routed} | {n.first_shared} | "
                f"{n.second_shared} | {n.margin:.1e} |"
            )
            print(rows[-1])
    return rows


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
    if not arguments.logits:
        write_checkpoints()
    plain = [kind.name for kind in CHECKPOINTS] + [kind.name for _, kind in BPE_CHECKPOINTS]
    for name in (*plain, *(kind.name for kind in PHI2_CHECKPOINTS)):
        write_logits(DATA / name)
    write_logits(NANO)
    write_multimodal_logits()
    routers = write_router_logits()
    write_texts()
    packages = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    text = README.format(versions=versions, seed=SEED, machine=machine, routers="\n".join(routers))
    (DATA / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
