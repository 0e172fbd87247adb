"""Random checkpoints with the exact shapes of released models, in the Hugging Face layout.

Phi-3.5-mini with weights, 7.6 GB; Phi-3.5-MoE with headers only: its 84 GB of weights are holes,
which take no place on the disk. Weights are bfloat16, near enough to normal, from a seed.

    python benchmarks/random_checkpoint.py FOLDER [--model phi3.5-moe] [--layers 2] [--seed 7]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.conversion.safetensors import encode_header
from phiggml.conversion.sentencepiece import SentencePieceModel, encode_sentencepiece

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "third_party" / "llama.cpp" / "models" / "ggml-vocab-phi-3.gguf"
PIECES, TOKENS, ROWS = 32_000, 32_011, 32_064
SHARD_BYTES = 5_000_000_000
CONTEXT, TRAINED = 131_072, 4_096
END, ASSISTANT, END_OF_TURN = 32_000, 32_001, 32_007
_DEVIATION = 0.02
_AT_ONCE = 4 << 20  # numbers

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """What a released model's config.json and headers say.

    Attributes:
        config: what is particular to it in config.json.
        hidden, feed_forward, heads, kv_heads, layers: its dimensions.
        experts: 0 for a dense model.
    """

    config: Mapping[str, Any]
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    layers: int = 32
    experts: int = 0

    def shapes(self, layers: int) -> Shapes:
        """Name -> shape of all tensors, in the order of the model's modules."""
        found: Shapes = {"model.embed_tokens.weight": (ROWS, self.hidden)}
        for layer in range(layers):
            parts = self._moe_layer() if self.experts else self._dense_layer()
            found |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
        found |= {"model.norm.weight": (self.hidden,), "lm_head.weight": (ROWS, self.hidden)}
        if self.experts:
            found |= {"model.norm.bias": (self.hidden,), "lm_head.bias": (ROWS,)}
        return found

    def _dense_layer(self) -> Shapes:
        n, wide = self.hidden, self.feed_forward
        rows = n // self.heads * (self.heads + 2 * self.kv_heads)
        return {
            "input_layernorm.weight": (n,),
            "self_attn.qkv_proj.weight": (rows, n),
            "self_attn.o_proj.weight": (n, n),
            "post_attention_layernorm.weight": (n,),
            "mlp.gate_up_proj.weight": (2 * wide, n),
            "mlp.down_proj.weight": (n, wide),
        }

    def _moe_layer(self) -> Shapes:
        n, wide = self.hidden, self.feed_forward
        narrow = n // self.heads * self.kv_heads
        found: Shapes = {}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{norm}.weight": (n,), f"{norm}.bias": (n,)}
        for name, rows in (("q", n), ("k", narrow), ("v", narrow), ("o", n)):
            found |= {
                f"self_attn.{name}_proj.weight": (rows, n),
                f"self_attn.{name}_proj.bias": (rows,),
            }
        found["block_sparse_moe.gate.weight"] = (self.experts, n)
        for expert in range(self.experts):
            for name, shape in (("w1", (wide, n)), ("w2", (n, wide)), ("w3", (wide, n))):
                found[f"block_sparse_moe.experts.{expert}.{name}.weight"] = shape
        return found

    def document(self, layers: int) -> dict[str, Any]:
        """config.json."""
        factors = self.hidden // self.heads // 2
        scaling = {
            "type": "longrope",
            "short_factor": np.linspace(1.0, 2.8, factors).round(4).tolist(),
            "long_factor": np.geomspace(1.0, 64.0, factors).round(4).tolist(),
        }
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": layers,
            "vocab_size": ROWS,
            "max_position_embeddings": CONTEXT,
            "original_max_position_embeddings": TRAINED,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": END,
            "torch_dtype": "bfloat16",
            **self.config,
            "rope_scaling": {**scaling, **self.config["rope_scaling"]},
        }


MODELS = {
    "phi3.5-mini": Model(
        {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "attention_bias": False,
            "pad_token_id": END,
            "sliding_window": 262_144,
            "rope_scaling": {},
        },
        hidden=3072,
        feed_forward=8192,
        heads=32,
        kv_heads=32,
    ),
    "phi3.5-moe": Model(
        {
            "architectures": ["PhiMoEForCausalLM"],
            "model_type": "phimoe",
            "attention_bias": True,
            "lm_head_bias": True,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "router_jitter_noise": 0.01,
            "input_jitter_noise": 0.01,
            "sliding_window": 131_072,
            "rope_scaling": {
                "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122,
                "original_max_position_embeddings": TRAINED,
            },
        },
        hidden=4096,
        feed_forward=6400,
        heads=32,
        kv_heads=8,
        experts=16,
    ),
}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """The tokenizer of Phi-3, made again from the vocabulary in the third-party tree."""
    with pg.GGUFFile(VOCABULARY) as file:
        tokens = list(file.metadata["tokenizer.ggml.tokens"])
        scores = [float(score) for score in file.metadata["tokenizer.ggml.scores"]]
        types = [int(type) for type in file.metadata["tokenizer.ggml.token_type"]]
    pieces = SentencePieceModel(
        pieces=tuple(tokens[:PIECES]),
        scores=tuple(scores[:PIECES]),
        # 1 to 3: normal, unknown, control; 6: a byte. The file calls </s> user-defined.
        types=tuple(types[:PIECES]),
        algorithm=2,
        add_dummy_prefix=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=-1,
    )
    (folder / "tokenizer.model").write_bytes(encode_sentencepiece(pieces))
    added = {token: i for i, token in enumerate(tokens[PIECES:TOKENS], PIECES)}
    _write_json(folder / "added_tokens.json", added)
    flags = {"lstrip": False, "normalized": False, "single_word": False}
    decoder = {
        str(i): {"content": token, "rstrip": i not in (0, 1, 2, END), "special": i != 2, **flags}
        for token, i in {"<unk>": 0, "<s>": 1, "</s>": 2, **added}.items()
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": False,
            "add_eos_token": False,
            "added_tokens_decoder": decoder,
            "bos_token": "<s>",
            "eos_token": tokens[END],
            "pad_token": tokens[END],
            "unk_token": "<unk>",
            "chat_template": "{{ messages[0]['content'] }}",
        },
    )
    ends = {"eos_token_id": [END_OF_TURN, ASSISTANT, END]}
    _write_json(folder / "generation_config.json", ends)


def _shards(shapes: Shapes) -> list[Shapes]:
    """The tensors of each file; a file ends before the tensor that would make it too large."""
    shards: list[Shapes] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= nbytes
    return shards


def _bfloat16_of_ranks() -> npt.NDArray[np.uint16]:
    """Rank of 65536 -> bits of the bfloat16 nearest to that quantile of a normal distribution."""
    normal = statistics.NormalDist(0.0, _DEVIATION)
    quantiles = [normal.inv_cdf((rank + 0.5) / 65536) for rank in range(65536)]
    bits = np.array(quantiles, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _random_pieces(count: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.uint16]]:
    table = _bfloat16_of_ranks()
    while count > 0:
        n = min(count, _AT_ONCE)
        yield table[np.frombuffer(rng.bytes(2 * n), np.uint16)]
        count -= n


def write_checkpoint(
    folder: Path,
    model: str = "phi3.5-mini",
    *,
    layers: int | None = None,
    seed: int = 0,
    weights: bool = True,
) -> int:
    """Writes a checkpoint.

    Args:
        folder: made if it is not there.
        model: a key of MODELS.
        layers: fewer than the model's make a smaller one; None: all.
        seed: of the weights.
        weights: False makes files of the right size whose data are holes.

    Returns:
        Bytes of the weight files.
    """
    known = MODELS[model]
    layers = known.layers if layers is None else layers
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", known.document(layers))
    _write_tokenizer(folder)
    shapes = known.shapes(layers)
    shards = _shards(shapes)
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    total = 0
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        data = 2 * sum(math.prod(shape) for shape in shard.values())
        with (folder / name).open("wb") as file:
            file.write(encode_header((tensor, "BF16", shape) for tensor, shape in shard.items()))
            if weights:
                for piece in _random_pieces(data // 2, rng):
                    file.write(piece.astype("<u2", copy=False).data)
            else:
                file.truncate(file.tell() + data)
            file.flush()
            os.fsync(file.fileno())
            total += os.fstat(file.fileno()).st_size
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))},
         "weight_map": weight_map},
    )  # fmt: skip
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="phi3.5-mini")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headers-only", action="store_true", help="weights that are holes")
    arguments = parser.parse_args()
    nbytes = write_checkpoint(
        arguments.folder,
        arguments.model,
        layers=arguments.layers,
        seed=arguments.seed,
        weights=not arguments.headers_only,
    )
    print(f"{arguments.folder}: {arguments.model}, {nbytes / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
